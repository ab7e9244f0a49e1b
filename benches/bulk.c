/*
 * A client for large bodies: one connection, one request after the other, every byte read and dropped.
 *
 *     bulk PORT PATH COUNT SECONDS get EXPECTED_BYTES
 *     bulk PORT PATH COUNT SECONDS put BODY_BYTES
 *
 * Stops after COUNT requests or SECONDS, whichever is first. `get` checks the length of each body; `put` sends that many
 * bytes with Content-Length and checks that the answer is that number in decimal. The connection is used again when the
 * server keeps it. Prints one line of JSON with the same names as wrk.lua.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 262144, MAX_COUNT = 100000, STALL_SECONDS = 30 };

static char block[BLOCK];
static double took[MAX_COUNT];

struct answer {
    int status, keep;
    long long length;     /* of the body; -1 when it ends with the connection */
    long long got;        /* bytes of it received */
    char start[32];       /* its first bytes */
};

static void fail(const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    fputs("bulk: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int dial(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct timeval stall = {.tv_sec = STALL_SECONDS};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &stall, sizeof stall);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &stall, sizeof stall);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect: %s", strerror(errno));
    return fd;
}

static void send_all(int fd, const char *bytes, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0)
            fail("send: %s", strerror(errno));
        bytes += sent;
        size -= sent;
    }
}

static void send_request(int fd, const char *path, long long body)
{
    char head[512];
    int size = body < 0 ? snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", path)
                        : snprintf(head, sizeof head,
                                   "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
                                   "Content-Length: %lld\r\n\r\n", path, body);
    send_all(fd, head, size);
    for (; body > 0; body -= BLOCK)
        send_all(fd, block, body < BLOCK ? body : BLOCK);
}

static const char *header(const char *head, const char *name)
{
    size_t size = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, size) == 0 && line[size] == ':')
            return line + size + 1 + strspn(line + size + 1, " ");
    }
    return NULL;
}

static void take(struct answer *a, const char *bytes, size_t size)
{
    if (a->got < (long long)sizeof a->start - 1) {
        size_t room = sizeof a->start - 1 - a->got;
        memcpy(a->start + a->got, bytes, size < room ? size : room);
    }
    a->got += size;
}

/* Returns the number of bytes read past the head, which are moved to the start of `data`. */
static size_t read_head(int fd, char *data, size_t size, struct answer *a)
{
    size_t have = 0;
    char *end = NULL;
    while (!end) {
        ssize_t got = have < size - 1 ? recv(fd, data + have, size - 1 - have, 0) : 0;
        if (got <= 0)
            fail("no head: %s", got ? strerror(errno) : "closed");
        have += got;
        data[have] = 0;
        end = memmem(data, have, "\r\n\r\n", 4);
    }
    end[2] = 0;
    const char *length = header(data, "Content-Length"), *connection = header(data, "Connection");
    if (sscanf(data, "HTTP/1.%*d %d", &a->status) != 1)
        fail("not HTTP");
    if (header(data, "Transfer-Encoding"))
        fail("chunked where a length was given");
    a->length = length ? atoll(length) : -1;
    a->keep = length && strncmp(data, "HTTP/1.1", 8) == 0 && !(connection && strncasecmp(connection, "close", 5) == 0);
    size_t body = data + have - (end + 4);
    memmove(data, end + 4, body);
    return body;
}

static struct answer receive(int fd)
{
    static char data[BLOCK];
    struct answer a = {0};
    take(&a, data, read_head(fd, data, sizeof data, &a));
    while (a.length < 0 || a.got < a.length) {
        ssize_t got = recv(fd, data, sizeof data, 0);
        if (got < 0)
            fail("recv: %s", strerror(errno));
        if (got == 0)
            break;
        take(&a, data, got);
    }
    return a;
}

static int by_value(const void *a, const void *b)
{
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static long percentile(long count, double share)
{
    long index = (long)(share * count);
    return (long)(took[index < count ? index : count - 1] * 1e6);
}

int main(int argc, char **argv)
{
    if (argc != 7)
        fail("usage: bulk PORT PATH COUNT SECONDS get|put BYTES");
    int port = atoi(argv[1]), put = strcmp(argv[5], "put") == 0, fd = -1;
    long count = atol(argv[3]), done = 0, connections = 0;
    long long size = atoll(argv[6]), total = 0;
    double start = now(), stop = start + atof(argv[4]);
    if (count < 1 || count > MAX_COUNT)
        fail("COUNT is out of range");

    while (done < count && now() < stop) {
        double began = now();
        if (fd < 0) {
            fd = dial(port);
            connections++;
        }
        send_request(fd, argv[2], put ? size : -1);
        struct answer a = receive(fd);
        if (a.status != 200 || (put ? atoll(a.start) : a.got) != size)
            fail("status %d, %lld bytes of body starting '%.20s'", a.status, a.got, put ? a.start : "");
        took[done++] = now() - began;
        total += put ? size : a.got;
        if (!a.keep) {
            close(fd);
            fd = -1;
        }
    }
    double duration = now() - start;
    qsort(took, done, sizeof *took, by_value);
    printf("RESULT {\"requests\": %ld, \"duration_us\": %.0f, \"bytes\": %lld, \"connections\": %ld, \"errors\": 0, "
           "\"p50\": %ld, \"p99\": %ld, \"p999\": %ld}\n",
           done, duration * 1e6, total, connections, percentile(done, 0.5), percentile(done, 0.99),
           percentile(done, 0.999));
    return 0;
}
