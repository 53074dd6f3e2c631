/* The least that can answer a gRPC call: nghttp2 over epoll in one thread, the same bytes for whatever is asked.
 *
 *     null_nghttp2 REPLY_HEX        prints the port of 127.0.0.1 that it got; ends when standard input does
 *
 * What a transport over nghttp2 costs beyond this is its own. Shares no line with the store's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_REPLY = 16000, IN_BYTES = 1 << 16, OUT_BYTES = 1 << 17, OUT_FULL = 1 << 16, N_EVENTS = 256 };

struct connection {
    int fd;
    nghttp2_session* session;
    size_t n_out, n_sent;
    uint8_t out[OUT_BYTES];
};

static uint8_t reply[5 + MOST_REPLY]; /* with gRPC's prefix */
static size_t n_reply;
static int epoll;
static nghttp2_session_callbacks* callbacks;
static nghttp2_option* option;

#define FIELD(name, value) \
    { (uint8_t*)name, (uint8_t*)value, sizeof(name) - 1, sizeof(value) - 1, \
      NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE }

static nghttp2_nv head[] = {FIELD(":status", "200"), FIELD("content-type", "application/grpc")};
static nghttp2_nv trailers[] = {FIELD("grpc-status", "0")};

static ssize_t on_read(nghttp2_session* session, int32_t stream, uint8_t* to, size_t length, uint32_t* flags,
                       nghttp2_data_source* source, void* user) {
    if (length < n_reply) return NGHTTP2_ERR_CALLBACK_FAILURE; /* the client's window is smaller than a reply */
    memcpy(to, reply, n_reply);
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    if (nghttp2_submit_trailer(session, stream, trailers, 1) != 0) return NGHTTP2_ERR_CALLBACK_FAILURE;
    return (ssize_t)n_reply;
}

static int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    nghttp2_data_provider body = {{0}, on_read};
    if (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) return 0;
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) return 0;
    return nghttp2_submit_response(session, frame->hd.stream_id, head, 2, &body);
}

static void end(struct connection* connection) {
    nghttp2_session_del(connection->session);
    close(connection->fd);
    free(connection);
}

static int watch(struct connection* connection, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    return epoll_ctl(epoll, operation, connection->fd, &event);
}

static int flush(struct connection* c) {
    const uint8_t* data;
    for (;;) {
        if (c->n_sent == c->n_out) {
            c->n_sent = c->n_out = 0;
            while (c->n_out < OUT_FULL) {
                ssize_t n = nghttp2_session_mem_send(c->session, &data);
                if (n < 0 || (size_t)n > OUT_BYTES - c->n_out) return -1;
                if (n == 0) break;
                memcpy(c->out + c->n_out, data, (size_t)n);
                c->n_out += (size_t)n;
            }
            if (c->n_out == 0) return 0;
        }
        ssize_t n = send(c->fd, c->out + c->n_sent, c->n_out - c->n_sent, MSG_NOSIGNAL);
        if (n > 0)
            c->n_sent += (size_t)n;
        else if (errno == EAGAIN)
            return watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
        else if (errno != EINTR)
            return -1;
    }
}

static int receive(struct connection* c) {
    static uint8_t input[IN_BYTES];
    ssize_t n = recv(c->fd, input, sizeof input, 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n == 0 || nghttp2_session_mem_recv(c->session, input, (size_t)n) < 0) return -1;
    return flush(c);
}

static void take(int listener) {
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection* c = calloc(1, sizeof *c);
    if (c == NULL) abort();
    c->fd = fd;
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20}};
    if (nghttp2_session_server_new2(&c->session, callbacks, c, option) != 0 ||
        nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 1) != 0 ||
        nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, 1 << 24) != 0 ||
        watch(c, EPOLL_CTL_ADD, EPOLLIN) != 0)
        abort();
    if (flush(c) != 0) end(c);
}

static int listen_anywhere(uint16_t* port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr*)&address, size) != 0 || listen(fd, 1024) != 0 ||
        getsockname(fd, (struct sockaddr*)&address, &size) != 0)
        return -1;
    *port = ntohs(address.sin_port);
    return fd;
}

static int read_reply(const char* hex) {
    size_t n = strlen(hex) / 2;
    if (n > MOST_REPLY || strlen(hex) % 2) return -1;
    for (int i = 0; i < 4; i++) reply[1 + i] = (uint8_t)(n >> (24 - 8 * i));
    for (size_t i = 0; i < n; i++)
        if (sscanf(hex + 2 * i, "%2hhx", &reply[5 + i]) != 1) return -1;
    n_reply = 5 + n;
    return 0;
}

int main(int argc, char** argv) {
    uint16_t port;
    if (argc != 2 || read_reply(argv[1]) != 0) {
        fprintf(stderr, "usage: null_nghttp2 REPLY_HEX, of at most %d bytes\n", MOST_REPLY);
        return 2;
    }
    int listener = listen_anywhere(&port);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (listener < 0 || epoll < 0 || nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0) {
        perror("null_nghttp2");
        return 1;
    }
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_option_set_no_closed_streams(option, 1);
    struct epoll_event for_listener = {.events = EPOLLIN, .data.ptr = &listener};
    struct epoll_event for_input = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &for_listener);
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &for_input);
    printf("%d\n", port);
    fflush(stdout);
    for (;;) {
        struct epoll_event events[N_EVENTS];
        int n = epoll_wait(epoll, events, N_EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct connection* c = events[i].data.ptr;
            if (c == NULL) return 0;
            if ((void*)c == (void*)&listener) {
                take(listener);
                continue;
            }
            int failed = 0;
            if (events[i].events & EPOLLOUT) failed = watch(c, EPOLL_CTL_MOD, EPOLLIN) != 0 || flush(c) != 0;
            if (!failed && events[i].events & ~EPOLLOUT) failed = receive(c) != 0;
            if (failed) end(c);
        }
    }
}
