void f()
{
  x();
  z();
  x();
}
