/*
 * The floor: the least that a server with one thread can do for one request on Linux.
 *
 * One level-triggered epoll loop, a fixed answer, no HTTP beyond finding the blank line that ends a head. What it does do
 * is honest: every head is waited for, read and answered by system calls of its own, heads that arrive in pieces are put
 * together, pipelined heads each get their answer.
 *
 *     floor PORT keep     connections stay open
 *     floor PORT close    a connection per request, closed by the server
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FD = 1024, MAX_HEAD = 8192, BATCH = 256 };

#define ANSWER(connection)                                                                                             \
    "HTTP/1.1 200 OK\r\nServer: rgunicorn\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: " connection           \
    "\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

static const char KEEP_ANSWER[] = ANSWER("keep-alive");
static const char CLOSE_ANSWER[] = ANSWER("close");

static const char *answer;
static size_t answer_size;
static int close_after_answer;
static int poller;

/* The part of a head that has arrived so far; most heads arrive whole and never touch it. */
static struct {
    size_t size;
    char *bytes;
} partial[MAX_FD];

static char buffer[65536];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void forget(int fd)
{
    free(partial[fd].bytes);
    partial[fd].bytes = NULL;
    partial[fd].size = 0;
    close(fd);
}

static int keep_partial(int fd, const char *bytes, size_t size)
{
    if (size > MAX_HEAD)
        return -1;
    char *copy = size ? malloc(size) : NULL;
    if (size && !copy)
        return -1;
    if (size)
        memcpy(copy, bytes, size);
    free(partial[fd].bytes);
    partial[fd].bytes = copy;
    partial[fd].size = size;
    return 0;
}

/* Reads once and answers each complete head. 1: still open, 0: waiting for more without having read, -1: finished. */
static int serve(int fd)
{
    size_t had = partial[fd].size;
    if (had)
        memcpy(buffer, partial[fd].bytes, had);
    ssize_t got = recv(fd, buffer + had, sizeof buffer - had, 0);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (got == 0)
        return -1;

    char *at = buffer, *end = buffer + had + got, *blank;
    while ((blank = memmem(at, end - at, "\r\n\r\n", 4))) {
        if (send(fd, answer, answer_size, MSG_NOSIGNAL) != (ssize_t)answer_size || close_after_answer)
            return -1;
        at = blank + 4;
    }
    if (at == end && !had)
        return 1;
    return keep_partial(fd, at, end - at) < 0 ? -1 : 1;
}

/* accept4 and a first read at once: the request has usually come with the handshake's last segment. */
static void accept_all(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        if (serve(fd) < 0) {
            forget(fd);
            continue;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
            forget(fd);
    }
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (listen(fd, 2048) < 0)
        die("listen");
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: floor PORT keep|close\n");
        return 2;
    }
    close_after_answer = strcmp(argv[2], "close") == 0;
    answer = close_after_answer ? CLOSE_ANSWER : KEEP_ANSWER;
    answer_size = strlen(answer);
    signal(SIGPIPE, SIG_IGN);

    int listener = listen_on(atoi(argv[1]));
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");

    struct epoll_event ready[BATCH];
    for (;;) {
        int count = epoll_wait(poller, ready, BATCH, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener)
                accept_all(listener);
            else if (serve(fd) < 0)
                forget(fd);
        }
    }
}
