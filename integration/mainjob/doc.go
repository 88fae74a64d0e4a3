// Package mainjob holds the scenarios of the main job on real VMs: a set over
// an application on two volumes; the planes killed while they work; an array
// that is slow. Those that take long carry the build tag "lab".
package mainjob
