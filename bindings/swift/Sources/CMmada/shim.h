/* The header that pkg-config leads to. */
#include <mmada.h>
