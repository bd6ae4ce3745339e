void f()
{
  a(x);
  c();
    b(x);
    switch (x) { }
}
