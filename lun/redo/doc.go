// Package redo keeps what is about to be written to devices in a journal outside
// of them, for changes that can't be made at one moment: what a volume preserves of
// itself and is written over itself, or tree blocks that are rewritten where they
// are.
//
//	Create, Writer.Add, Writer.Seal   all that will be written, and then the word that it is all
//	Open                              a journal that was sealed, checked from its first byte to its last
//	Journal.Apply                     writes, once or again
//
// Nothing is written to a device before the whole journal is stable. Then comes a
// mark into one sector of each volume, its guard, which is one without which the
// volume is not taken for what it is; then everything else; and last the guards'
// own content. So a volume that is half written says so itself (see Marked), is
// mounted by nobody meanwhile, and names the one journal that ends it. Apply may be
// interrupted at any point and be called again: it only ever writes what the
// journal holds, and the result is the same.
//
// A journal whose devices bear no mark of it is not applied: either nothing of it
// was written, or all was, and the devices may have changed since. Applied tells
// which.
//
// Sectors of 512 bytes are taken to be written whole or not at all, those of the
// journal and those of devices; nothing is taken for granted of their order between
// two calls of Sync. A journal of one device is no good to another: it is applied
// only where its own mark is, 128 bits made by chance.
//
// Journals and devices are read as hostile: a journal is refused where a checksum
// (CRC-32C), a place or a length is wrong, before the first write.
package redo
