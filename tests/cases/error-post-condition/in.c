void f()
{
  x();
}
