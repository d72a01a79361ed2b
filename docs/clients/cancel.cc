// Streams an answer from the ensemble `autoglm`, cancels it after two pieces, and reads it to its end.
//
//   protoc --cpp_out=. --grpc_out=. --plugin=protoc-gen-grpc=$(which grpc_cpp_plugin) grpc_service.proto model_config.proto
//   g++ -std=c++17 cancel.cc *.pb.cc -lgrpc++ -lprotobuf -o cancel && ./cancel 127.0.0.1:8001
//
// The two .proto files are Triton's: github.com/triton-inference-server/common, protobuf/.

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>

#include "grpc_service.grpc.pb.h"

using Request = inference::ModelInferRequest;
using Response = inference::ModelStreamInferResponse;
using Stub = inference::GRPCInferenceService::Stub;
using Call = grpc::ClientReaderWriter<Request, Response>;

// A tensor's bytes: numbers are little-endian; a string is its length as a uint32, then its UTF-8 bytes.
std::string number(std::int32_t value) { return std::string(reinterpret_cast<const char*>(&value), sizeof value); }

std::string text(const std::string& value) { return number(static_cast<std::int32_t>(value.size())) + value; }

void add(Request& request, const std::string& name, const std::string& datatype, const std::string& raw) {
  auto* input = request.add_inputs();
  input->set_name(name);
  input->set_datatype(datatype);
  input->add_shape(1);
  input->add_shape(1);
  request.add_raw_input_contents(raw);
}

Request request_of(const std::string& model, const std::string& id) {
  Request request;
  request.set_model_name(model);
  request.set_id(id);
  // Without it the end of an answer that has no further piece is never sent.
  (*request.mutable_parameters())["triton_enable_empty_final_response"].set_bool_param(true);
  return request;
}

std::unique_ptr<Call> send(Stub& stub, grpc::ClientContext& context, const Request& request) {
  auto call = stub.ModelStreamInfer(&context);
  call->Write(request);
  call->WritesDone();
  return call;
}

// The tensor `name` of a response, without a string's length; empty where it has none, as at the end.
std::string output(const Response& response, const std::string& name) {
  const auto& infer = response.infer_response();
  for (int i = 0; i < infer.outputs_size(); ++i)
    if (infer.outputs(i).name() == name) return infer.raw_output_contents(i).substr(4);
  return "";
}

// A control request goes to the model `engine`, in a call of its own. It ends every request of that id, also one that is still
// being tokenized. Never TryCancel() the answer's own call: Triton 2.51 then counts the request as in flight for ever.
void cancel(Stub& stub, const std::string& id) {
  Request request = request_of("engine", "cancel " + id);
  add(request, "control", "BYTES", text("{\"cancel\": [\"" + id + "\"]}"));
  grpc::ClientContext context;
  auto call = send(stub, context, request);
  for (Response response; call->Read(&response);)
    if (!response.error_message().empty()) std::cerr << response.error_message() << "\n";
  call->Finish();
}

int main(int count, char** arguments) {
  const std::string address = count > 1 ? arguments[1] : "127.0.0.1:8001";
  Stub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  const std::string id = "story 1 of this process";  // yours; unique among what is under way

  Request request = request_of("autoglm", id);
  add(request, "text_input", "BYTES", text("Once upon a time"));
  add(request, "stream", "BOOL", std::string(1, '\1'));
  add(request, "max_tokens", "INT32", number(500));
  add(request, "ignore_eos", "BOOL", std::string(1, '\1'));
  add(request, "deadline_ms", "INT32", number(60000));  // ends it where the cancel is never sent

  grpc::ClientContext context;
  auto call = send(stub, context, request);
  int pieces = 0;
  std::string reason;
  for (Response response; call->Read(&response);) {  // to the end: what was under way still comes
    if (!response.error_message().empty()) {
      std::cerr << response.error_message() << "\n";
      return 1;
    }
    const std::string piece = output(response, "text_output");  // empty: a heartbeat, or the end
    if (const std::string said = output(response, "finish_reason"); !said.empty()) reason = said;
    if (!piece.empty() && ++pieces == 2) cancel(stub, id);
  }
  const grpc::Status status = call->Finish();
  std::cout << "finish reason: " << reason << "\n";
  return status.ok() ? 0 : 1;
}
