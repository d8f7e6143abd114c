# cmake -DIN=file -DOUT=file.cc -DSYMBOL=name -P embed_text.cmake: a text file as a string function.
file(READ ${IN} text)
# A string literal may hold 64 KiB by the standard: cut into pieces of 8,000 characters.
string(LENGTH "${text}" length)
set(pieces "")
set(at 0)
while(at LESS length)
  string(SUBSTRING "${text}" ${at} 8000 piece)
  string(APPEND pieces "R\"~~~(${piece})~~~\"\n")
  math(EXPR at "${at} + 8000")
endwhile()
file(WRITE ${OUT} "#include <string_view>\nnamespace lacuna {\nstd::string_view ${SYMBOL}() {\n  return\n${pieces};\n}\n}  // namespace lacuna\n")
