package blockmap

// maxClaims bounds the slots of Claims: 32 MiB of memory.
const maxClaims = 16 << 20

// Claims finds out whether blocks of one size overlap in a file, in memory that
// depends on the file's size and not on what its tables say.
//
// The file is divided into slots of a block's size. Blocks that don't overlap
// begin in different slots, and a block can overlap only those of its own and
// of the neighbouring slots, so one number per slot is all there is to keep.
type Claims struct {
	slots []uint16 // 1 + offset of the block that begins there
	size  int64
}

// NewClaims is for blocks of size units in a file of total units, whatever the
// unit. nil: too many slots to check.
func NewClaims(total, size int64) *Claims {
	if size < 1 || size >= 1<<16 || total < 0 || total/size >= maxClaims {
		return nil
	}
	return &Claims{slots: make([]uint16, total/size+1), size: size}
}

// Claim notes the block that begins at unit start, which lies in the file, and
// reports whether it is free of all others noted before.
func (c *Claims) Claim(start int64) bool {
	slot := start / c.size
	for near := max(slot-1, 0); near <= min(slot+1, int64(len(c.slots))-1); near++ {
		if v := c.slots[near]; v != 0 {
			other := near*c.size + int64(v) - 1
			if other < start+c.size && start < other+c.size {
				return false
			}
		}
	}
	c.slots[slot] = uint16(start-slot*c.size) + 1
	return true
}
