void f()
{
	switch (stage)
	{
	case 0:
		n = ch;
		stage = 1;
		break;
	case 1:
		break;
	}
}
