#define ERR(s) \
  put(ch); \
  puts(s)
int x;
