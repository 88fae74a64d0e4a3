// Package powercut asks whether the power-cut tests of the embedded array would
// notice a missing fsync: it takes each one out of the code, one at a time, and
// wants them to fail. And it runs them with traces that no run before has had. It
// needs the build tag lab.
package powercut
