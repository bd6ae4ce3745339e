void f()
{
  if(!ch
     &&   (line.len>1/* letter */))
    g();
}
