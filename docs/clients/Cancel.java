// Streams an answer from the ensemble `autoglm`, cancels it after two pieces, and reads it to its end.
//
//   protoc --java_out=. --grpc-java_out=. --plugin=protoc-gen-grpc-java=$(which grpc_java_plugin) grpc_service.proto model_config.proto
//   javac -cp "$JARS" Cancel.java inference/*.java && java -cp "$JARS:." Cancel 127.0.0.1:8001
//
// The two .proto files are Triton's: github.com/triton-inference-server/common, protobuf/. JARS: grpc-java (netty, protobuf, stub).

import com.google.protobuf.ByteString;
import inference.GRPCInferenceServiceGrpc;
import inference.GrpcService.InferParameter;
import inference.GrpcService.ModelInferRequest;
import inference.GrpcService.ModelInferResponse;
import inference.GrpcService.ModelStreamInferResponse;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.stub.StreamObserver;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CountDownLatch;
import java.util.function.Consumer;

public final class Cancel {
    /** A tensor's bytes: numbers are little-endian; a string is its length as a uint32, then its UTF-8 bytes. */
    static ByteString number(int value) {
        return ByteString.copyFrom(ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(value).array());
    }

    static ByteString text(String value) {
        byte[] raw = value.getBytes(StandardCharsets.UTF_8);
        return number(raw.length).concat(ByteString.copyFrom(raw));
    }

    static ByteString yes() {
        return ByteString.copyFrom(new byte[] {1});
    }

    static void add(ModelInferRequest.Builder request, String name, String datatype, ByteString raw) {
        request.addInputsBuilder().setName(name).setDatatype(datatype).addShape(1).addShape(1);
        request.addRawInputContents(raw);
    }

    static ModelInferRequest.Builder requestOf(String model, String id) {
        // Without the parameter the end of an answer that has no further piece is never sent.
        InferParameter wanted = InferParameter.newBuilder().setBoolParam(true).build();
        return ModelInferRequest.newBuilder()
                .setModelName(model)
                .setId(id)
                .putParameters("triton_enable_empty_final_response", wanted);
    }

    /** Gives each response to `reader`, and returns what is released at the end of the stream. */
    static CountDownLatch send(
            GRPCInferenceServiceGrpc.GRPCInferenceServiceStub stub,
            ModelInferRequest request,
            Consumer<ModelStreamInferResponse> reader) {
        CountDownLatch ended = new CountDownLatch(1);
        StreamObserver<ModelInferRequest> call = stub.modelStreamInfer(new StreamObserver<>() {
            @Override
            public void onNext(ModelStreamInferResponse response) {
                reader.accept(response);
            }

            @Override
            public void onError(Throwable error) {
                System.err.println(error.getMessage());
                ended.countDown();
            }

            @Override
            public void onCompleted() {
                ended.countDown();
            }
        });
        call.onNext(request);
        call.onCompleted(); // half-closes: answers still come
        return ended;
    }

    /** The tensor `name` of a response, without a string's length; empty where it has none, as at the end. */
    static String output(ModelStreamInferResponse response, String name) {
        ModelInferResponse infer = response.getInferResponse();
        for (int i = 0; i < infer.getOutputsCount(); i++) {
            if (infer.getOutputs(i).getName().equals(name)) {
                return infer.getRawOutputContents(i).substring(4).toStringUtf8();
            }
        }
        return "";
    }

    /**
     * A control request goes to the model `engine`, in a call of its own. It ends every request of that id, also one that is
     * still being tokenized. Never cancel() the answer's own call: Triton 2.51 then counts the request as in flight for ever.
     */
    static void cancel(GRPCInferenceServiceGrpc.GRPCInferenceServiceStub stub, String id) {
        ModelInferRequest.Builder request = requestOf("engine", "cancel " + id);
        add(request, "control", "BYTES", text("{\"cancel\": [\"" + id + "\"]}"));
        send(stub, request.build(), response -> System.err.print(response.getErrorMessage()));
    }

    public static void main(String[] arguments) throws InterruptedException {
        String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:8001";
        ManagedChannel channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
        GRPCInferenceServiceGrpc.GRPCInferenceServiceStub stub = GRPCInferenceServiceGrpc.newStub(channel);
        String id = "story 1 of this process"; // yours; unique among what is under way

        ModelInferRequest.Builder request = requestOf("autoglm", id);
        add(request, "text_input", "BYTES", text("Once upon a time"));
        add(request, "stream", "BOOL", yes());
        add(request, "max_tokens", "INT32", number(500));
        add(request, "ignore_eos", "BOOL", yes());
        add(request, "deadline_ms", "INT32", number(60_000)); // ends it where the cancel is never sent

        int[] pieces = {0};
        CountDownLatch ended = send(stub, request.build(), response -> {
            System.err.print(response.getErrorMessage());
            if (!output(response, "text_output").isEmpty() && ++pieces[0] == 2) { // empty: a heartbeat, or the end
                cancel(stub, id);
            }
            String reason = output(response, "finish_reason");
            if (!reason.isEmpty()) {
                System.out.println("finish reason: " + reason);
            }
        });
        ended.await();
        channel.shutdown();
    }
}
