/* descriptors.h - how many connections this process may have open at once. */
#ifndef HTTP_DESCRIPTORS_H
#define HTTP_DESCRIPTORS_H

/* Raises the limit of open files as far as needed and allowed.  Returns how many connections fit,
 * wanted at most; when it is less, the log says so. */
int descriptors_raise(int connections_wanted);

#endif
