// Streams an answer from the ensemble `autoglm`, cancels it after two pieces, and reads it to its end.
//
//	go mod init example.com/cancel
//	M=Mgrpc_service.proto=example.com/cancel/inference,Mmodel_config.proto=example.com/cancel/inference,paths=source_relative
//	mkdir inference && protoc --go_out=$M:inference --go-grpc_out=$M:inference grpc_service.proto model_config.proto
//	go mod tidy && go run . 127.0.0.1:8001
//
// The two .proto files are Triton's: github.com/triton-inference-server/common, protobuf/.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"example.com/cancel/inference"
)

// A tensor's bytes: numbers are little-endian; a string is its length as a uint32, then its UTF-8 bytes.
func number(value int32) []byte {
	return binary.LittleEndian.AppendUint32(nil, uint32(value))
}

func text(value string) []byte {
	return append(number(int32(len(value))), value...)
}

func add(request *inference.ModelInferRequest, name, datatype string, raw []byte) {
	input := &inference.ModelInferRequest_InferInputTensor{Name: name, Datatype: datatype, Shape: []int64{1, 1}}
	request.Inputs = append(request.Inputs, input)
	request.RawInputContents = append(request.RawInputContents, raw)
}

func requestOf(model, id string) *inference.ModelInferRequest {
	// Without the parameter the end of an answer that has no further piece is never sent.
	wanted := &inference.InferParameter{ParameterChoice: &inference.InferParameter_BoolParam{BoolParam: true}}
	return &inference.ModelInferRequest{
		ModelName:  model,
		Id:         id,
		Parameters: map[string]*inference.InferParameter{"triton_enable_empty_final_response": wanted},
	}
}

// read sends the request in a call of its own and gives each response to take, to the end.
func read(client inference.GRPCInferenceServiceClient, request *inference.ModelInferRequest, take func(*inference.ModelInferResponse)) error {
	// Never a context that is cancelled: Triton 2.51 then counts the request as in flight for ever.
	call, err := client.ModelStreamInfer(context.Background())
	if err != nil {
		return err
	}
	if err := call.Send(request); err != nil {
		return err
	}
	if err := call.CloseSend(); err != nil {
		return err
	}
	for {
		response, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if response.ErrorMessage != "" {
			return errors.New(response.ErrorMessage)
		}
		take(response.InferResponse)
	}
}

// output is the tensor `name`, without a string's length; empty where it has none, as at the end.
func output(response *inference.ModelInferResponse, name string) string {
	for i, tensor := range response.Outputs {
		if tensor.Name == name {
			return string(response.RawOutputContents[i][4:])
		}
	}
	return ""
}

// cancel ends every request of that id, also one that is still being tokenized.
func cancel(client inference.GRPCInferenceServiceClient, id string) error {
	command, err := json.Marshal(map[string][]string{"cancel": {id}})
	if err != nil {
		return err
	}
	request := requestOf("engine", "cancel "+id)
	add(request, "control", "BYTES", text(string(command)))
	return read(client, request, func(*inference.ModelInferResponse) {})
}

func main() {
	address := "127.0.0.1:8001"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	channel, err := grpc.Dial(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	client := inference.NewGRPCInferenceServiceClient(channel)
	id := "story 1 of this process" // yours; unique among what is under way

	request := requestOf("autoglm", id)
	add(request, "text_input", "BYTES", text("Once upon a time"))
	add(request, "stream", "BOOL", []byte{1})
	add(request, "max_tokens", "INT32", number(500))
	add(request, "ignore_eos", "BOOL", []byte{1})
	add(request, "deadline_ms", "INT32", number(60000)) // ends it where the cancel is never sent

	pieces := 0
	err = read(client, request, func(response *inference.ModelInferResponse) {
		if output(response, "text_output") != "" { // empty: a heartbeat, or the end
			if pieces++; pieces == 2 {
				if err := cancel(client, id); err != nil {
					log.Print(err)
				}
			}
		}
		if reason := output(response, "finish_reason"); reason != "" {
			fmt.Println("finish reason:", reason)
		}
	})
	if err != nil {
		log.Fatal(err)
	}
}
