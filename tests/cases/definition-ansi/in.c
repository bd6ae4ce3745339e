int f(int a)
{
  x = 1;
  y(x);
}

int g(void)
{
  x = 1;
  y(x);
}
