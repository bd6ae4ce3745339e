void f()
{
	a();
	c();
}
