// Package mainjob holds the scenarios of the main job on real VMs: a set over
// an application on two volumes; the planes killed while they work; an array
// that is slow; VMs whose disks are on arrays of other hands. Those that take long
// carry the build tag "lab".
package mainjob
