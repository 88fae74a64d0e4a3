// Package program is the provider of arrays that anybody's program speaks for.
//
// The program is written in any language. It reads requests and writes replies,
// one JSON object a line, on its standard input and output; its standard error is
// its log. docs/provider-program.md is the protocol's reference, and
// examples/provider-reflink a program in a shell that passes the providers' suite.
//
// What it promises. A program that hangs is killed at the call's deadline, with
// everything it started in its process group; one that dies, says nothing, or
// says what makes no sense is an error of that call alone. Wherever it may have
// changed the array by then, the error's kind is OutcomeUnknown, and the engine
// looks the tag up before it does anything else. What it says is bounded and
// checked. It gets only the environment that was named, and no secrets from us.
//
// A call is a process of its own, unless the program says that it serves: then one
// process answers many calls at once, is started when there is one, and
// started again after it died.
//
// To add a call: a name in wire.go, its option in driver.go, a line in the
// protocol's reference.
package program
