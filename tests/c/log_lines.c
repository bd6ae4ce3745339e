/* Says through qmail-send's log functions what a test looks for. */
#include <string.h>
#include "qsutil.h"

int main(void)
{
  static char text[3001];

  log1("status:");
  log3(" local ","0","/");
  lognum("",20," exitasap\n");
  lognum("delivery ",7,": success: ");
  logtext("two lines\nin one\n");
  log1("\n");
  log1("\n");
  memset(text,'x',3000);
  log3("longer than the buffer: ",text,"\n");
  memset(text,'y',1022);
  text[1022] = 0;
  log3("",text,"\n");
  log3("two\n","lines\n","and the start of a third, ");
  log1("which ends\n");
  return 0;
}
