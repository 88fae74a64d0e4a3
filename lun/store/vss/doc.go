// Package vss reads the shadow copies that Windows keeps inside an NTFS volume:
// the store of the Microsoft Software Shadow Copy provider (volsnap.sys).
//
// Read reads the volume's header and its catalog, and lists the shadow copies;
// Volume.Open makes one of them a device. Nothing is ever written here.
//
// Whoever writes a shadow copy over its volume zeroes CatalogField. The stores' lists
// name blocks of a volume that is no more, so none of the copies may be found again:
// with that field zero there are none, to libvshadow as to this package. The file
// system that comes back knows the files of the stores that were there at its time;
// they hold what nobody reads, and take space in System Volume Information until
// they are deleted. That Windows itself deletes them was not tried.
//
// A store keeps blocks of 16 KiB that were overwritten since its shadow copy was
// made and before the next one was. So a shadow copy is read through a chain: its
// own store, then those of all younger copies, then the volume as it is. A store
// has three kinds of descriptors:
//
//	a block      the content lies at an offset of the volume, in the diff area
//	a forwarder  the content is to be had where another offset of the next younger copy reads
//	an overlay   single sectors of a block, which only this copy has, not older ones
//
// What was free when the copy was made is not preserved: Windows gives no promise
// for its content. Here such blocks read as zeroes where the store's bitmap says
// so and nothing else is known, as libvshadow has it.
//
// Opening a copy reads the block lists of its chain into an index of sorted
// arrays: 16 bytes for each run of blocks or overlay, and no more than MaxIndex in
// all. A store that needs more is refused. What headers claim is never allocated;
// every list is counted first.
//
// Price: a shadow copy is crash-consistent to NTFS, but for what the writers'
// auto-recovery did to it before it was sealed; its $LogFile may be dirty. Of
// Windows 8 and later (version 2) the headers differ by their number as far as is
// documented. ReFS and diff areas on another volume are not read.
//
// Source: J. Metz, "Volume Shadow Snapshot (VSS) format", libyal/libvshadow. No
// specification by the maker is public.
package vss
