void f()
{
	a();
	b();
	d();
	e();
}
