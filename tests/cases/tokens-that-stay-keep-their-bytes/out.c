void f()
{
  if(!ch
     &&   (line.len>2/* letter */))
    g();
}
