int f(int a)
{
  x = 1;
  y(2 * x);
}

int g(void)
{
  x = 1;
  y(x);
}
