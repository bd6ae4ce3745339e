void f()
{
  a(x);
  c();
    switch (x) { }
}
