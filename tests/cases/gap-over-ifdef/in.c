void f()
{
	fd = open(name);
#ifdef DEBUG
	log("it's open");
#endif
	return;
}
