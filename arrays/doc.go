// Package arrays is how the rest of Cleave speaks to storage arrays: through
// the concrete type Array, which wraps what a provider implements (package
// driver).
//
// Array validates arguments, traces calls, wraps errors once, and makes every
// type assertion on a driver's options, so that no caller has to know which
// interfaces a provider has, and no decorator hides one.
//
// Adding a provider: a package beside this one that implements driver.Driver
// and passes arraytest.Run, and one line in plugin/assemble.
package arrays
