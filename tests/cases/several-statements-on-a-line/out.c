void f()
{
  char ch; ch = n;
  put(ch);
  ch = n >> 8;
  flush(ch); done();
}
