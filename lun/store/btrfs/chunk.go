package btrfs

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// maxChunks is a petabyte of chunks of the usual size.
const maxChunks = 1 << 20

// chunk is a run of logical addresses and the places of its copies on the device.
type chunk struct {
	logical, length uint64
	at              [2]uint64
	copies          int
}

// profile are the bits of a chunk's type above data, system and metadata.
type profile uint64

const (
	profileDUP profile = 1 << 5
	profiles   profile = 1<<11 - 1<<3
)

var profileNames = map[profile]string{1 << 3: "RAID0", 1 << 4: "RAID1", 1 << 6: "RAID10", 1 << 7: "RAID5", 1 << 8: "RAID6", 1 << 9: "RAID1C3", 1 << 10: "RAID1C4"}

// A chunk item (struct btrfs_chunk), and behind its 48 bytes stripes of 32:
//
//	 0  8  length           0  8  devid
//	24  8  type             8  8  offset
//	44  2  num_stripes     16 16  dev_uuid
const (
	chunkSize  = 48
	stripeSize = 32
)

// addChunk takes a chunk item into the map. It returns the item's length.
func (f *FS) addChunk(logical uint64, b []byte) (int, error) {
	if len(b) < chunkSize+stripeSize {
		return 0, damaged(-1, "chunk", logical, "the item is too short")
	}
	p := profile(le.Uint64(b[24:])) & profiles
	n := int(le.Uint16(b[44:]))
	c := chunk{logical: logical, length: le.Uint64(b), copies: 1}
	if p == profileDUP {
		c.copies = 2
	}
	size := chunkSize + n*stripeSize
	total := f.super.total()
	switch {
	case p != 0 && p != profileDUP:
		name := profileNames[p]
		if name == "" {
			name = fmt.Sprintf("%#x", uint64(p))
		}
		return 0, damaged(-1, "chunk profile", name, "only single and DUP are read")
	case n != c.copies || len(b) < size:
		return 0, damaged(-1, "num_stripes", n, "does not fit the chunk's profile")
	case c.length == 0 || c.length > total || logical+c.length < logical:
		return 0, damaged(-1, "chunk length", c.length, fmt.Sprintf("the file system has %d bytes", total))
	}
	for i := range c.copies {
		s := b[chunkSize+i*stripeSize:]
		if le.Uint64(s) != f.super.devid() {
			return 0, damaged(-1, "chunk devid", le.Uint64(s), "is another device")
		}
		c.at[i] = le.Uint64(s[8:])
		if c.at[i] > total-c.length {
			return 0, damaged(-1, "chunk offset", c.at[i], "lies behind the end of the file system")
		}
	}
	if len(f.chunks) == maxChunks {
		return 0, damaged(-1, "chunks", maxChunks, "there are too many")
	}
	i, found := slices.BinarySearchFunc(f.chunks, logical, func(c chunk, l uint64) int { return cmp.Compare(c.logical, l) })
	if found && f.chunks[i] == c { // the superblock's are in the tree as well
		return size, nil
	}
	if found || i > 0 && f.chunks[i-1].logical+f.chunks[i-1].length > logical || i < len(f.chunks) && logical+c.length > f.chunks[i].logical {
		return 0, damaged(-1, "chunk", logical, "lies on another chunk")
	}
	f.chunks = slices.Insert(f.chunks, i, c)
	return size, nil
}

// locate says where logical address at lies on the device, in each copy, and for
// how many bytes that holds.
func (f *FS) locate(at uint64) (places []int64, run int64, err error) {
	i := sort.Search(len(f.chunks), func(i int) bool { return f.chunks[i].logical > at }) - 1
	if i < 0 || at-f.chunks[i].logical >= f.chunks[i].length {
		return nil, 0, damaged(-1, "logical address", at, "lies in no chunk")
	}
	c := &f.chunks[i]
	in := at - c.logical
	for _, p := range c.at[:c.copies] {
		places = append(places, int64(p+in))
	}
	return places, int64(c.length - in), nil
}

// Locate says where n bytes at a logical address lie on the device: at At in the
// first copy, for Run of them at least.
func (f *FS) Locate(logical uint64, n int64) (at, run int64, err error) {
	places, run, err := f.locate(logical)
	if err != nil {
		return 0, 0, err
	}
	return places[0], min(run, n), nil
}
