void f()
{
  char ch; ch = n; flush(ch); done();
}
