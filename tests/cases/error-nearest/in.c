void f()
{
  while (x) if (r == 1) g();
  if (r == 0) {
    a = 1;
    return_later();
  }
}
