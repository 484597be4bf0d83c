/* deaf.c - a process that does not hear what one server says: preloaded into it, it throws away whatever comes from the port $DEAF_PORT
 * while the file $DEAF exists.  What it says itself goes out, so a broker writes a record and its answer is lost. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int is_deaf_to(int fd)
{
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    const char *file = getenv("DEAF"), *port = getenv("DEAF_PORT");
    if (!file || !port || access(file, F_OK) != 0) return 0;
    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0 || peer.sin_family != AF_INET) return 0;
    return ntohs(peer.sin_port) == atoi(port);
}

/* The end of the connection is heard. */
static ssize_t heard(int fd, ssize_t n)
{
    if (n <= 0 || !is_deaf_to(fd)) return n;
    errno = EAGAIN;
    return -1;
}

ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
    static ssize_t (*real)(int, struct msghdr *, int);
    if (!real) real = (ssize_t(*)(int, struct msghdr *, int))dlsym(RTLD_NEXT, "recvmsg");
    return heard(fd, real(fd, m, flags));
}

ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
    static ssize_t (*real)(int, void *, size_t, int);
    if (!real) real = (ssize_t(*)(int, void *, size_t, int))dlsym(RTLD_NEXT, "recv");
    return heard(fd, real(fd, buffer, size, flags));
}
