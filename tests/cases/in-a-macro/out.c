#define ERR(s) \
  put(ch); put(ch >> 8); \
  puts(s)
int x;
