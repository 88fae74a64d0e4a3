// Package rbd is the provider for images of Ceph's RADOS Block Device.
//
// It runs Ceph's own `rbd` and reads its JSON. A volume's ID is pool/image or
// pool/namespace/image, a snapshot's ID that of its volume, "@" and Ceph's name of
// the snapshot: "cleave-" and the set's tag. Nothing else is remembered: Lookup
// asks every image of the pools that are configured, which takes the longer the
// more there are.
//
// Ceph takes a snapshot of an image by itself at one instant: the client that
// holds the image's exclusive lock writes out what it has acknowledged first.
// Several images are split by a group snapshot, which is made while rbd holds the
// locks of all of them (group.go). Its members have numbers and no names: they are
// read through views (member.go), and rbd diff doesn't know them. What is known of
// them is in the images' metadata. rbd-mirror's promotion is a failover and no
// split.
//
// Images are read through a program, a process for each, that ends with us: the
// first way (way.go) for which the host has all. qemu-storage-daemon speaks NBD on a
// socket that only this user can open; tgt has iSCSI on the loopback, for who knows
// a secret; rbd-nbd makes a block device, which the host's kernel and udev look into
// as into any other. To add a way: an entry of ways.
package rbd
