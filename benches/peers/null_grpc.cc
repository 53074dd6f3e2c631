// gRPC C++ at its fastest for unary calls: the asynchronous API, one completion queue, one thread, no protobuf; the
// same bytes for whatever is asked.
//
//     null_grpc METHOD REPLY_HEX    prints the port of 127.0.0.1 that it got; ends when standard input does
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/async_unary_call.h>
#include <grpcpp/impl/codegen/rpc_service_method.h>
#include <grpcpp/impl/codegen/service_type.h>

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kCalls = 1024;  // asked for in advance: more than a client has under way at once

class Service : public grpc::Service {
 public:
  explicit Service(const char* method) {
    AddMethod(new grpc::internal::RpcServiceMethod(method, grpc::internal::RpcMethod::NORMAL_RPC, nullptr));
    MarkMethodRaw(0);
  }

  void Request(grpc::ServerContext* context, grpc::ByteBuffer* message,
               grpc::ServerAsyncResponseWriter<grpc::ByteBuffer>* writer, grpc::ServerCompletionQueue* queue,
               void* tag) {
    RequestAsyncUnary(0, context, message, writer, queue, queue, tag);
  }
};

struct Call {
  grpc::ServerContext context;
  grpc::ByteBuffer message;
  grpc::ServerAsyncResponseWriter<grpc::ByteBuffer> writer{&context};
  bool is_answered = false;
};

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes.push_back(static_cast<char>(std::strtol(hex.substr(i, 2).c_str(), nullptr, 16)));
  return bytes;
}

void Ask(Service* service, grpc::ServerCompletionQueue* queue) {
  auto* call = new Call;
  service->Request(&call->context, &call->message, &call->writer, queue, call);
}

void Serve(Service* service, grpc::ServerCompletionQueue* queue, const grpc::ByteBuffer& reply) {
  for (int i = 0; i < kCalls; i++) Ask(service, queue);
  void* tag;
  bool is_ok;
  while (queue->Next(&tag, &is_ok)) {
    auto* call = static_cast<Call*>(tag);
    if (!is_ok || call->is_answered) {
      delete call;
      continue;
    }
    Ask(service, queue);
    call->is_answered = true;
    call->writer.Finish(reply, grpc::Status::OK, call);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: null_grpc METHOD REPLY_HEX\n");
    return 2;
  }
  Service service(argv[1]);
  grpc::Slice slice(FromHex(argv[2]));
  grpc::ByteBuffer reply(&slice, 1);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  auto queue = builder.AddCompletionQueue();
  auto server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::thread thread(Serve, &service, queue.get(), std::cref(reply));
  std::printf("%d\n", port);
  std::fflush(stdout);
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  std::_Exit(0);  // nothing here outlives the process
}
