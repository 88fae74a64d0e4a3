package btrfs

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
)

// changed is an image in which some blocks are others.
type changed struct {
	luntest.ReadOnly
	blocks map[int64][]byte
}

func (c changed) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReadOnly.ReadAt(p, off)
	for at, b := range c.blocks {
		from, to := max(at, off), min(at+int64(len(b)), off+int64(n))
		if from < to {
			copy(p[from-off:to-off], b[from-at:])
		}
	}
	return n, err
}

// changer changes an image's structures and gives them their checksums again.
type changer struct {
	t   *testing.T
	f   *FS // of the image as it was
	dev changed
}

func newChanger(t *testing.T) *changer {
	t.Helper()
	c := &changer{t: t, dev: changed{luntest.Image(t, "btrfs-open1"), make(map[int64][]byte)}}
	var err error
	if c.f, err = Open(c.dev.ReadOnly); err != nil {
		t.Fatal(err)
	}
	return c
}

// super changes the superblocks.
func (c *changer) super(fn func(s super)) {
	for _, at := range superAt[:2] {
		b := make(super, superSize)
		if _, err := c.dev.ReadAt(b, at); err != nil {
			c.t.Fatal(err)
		}
		fn(b)
		sumCRC32C.set(b)
		c.dev.blocks[at] = b
	}
}

// node changes all copies of the block where a tree has a key.
func (c *changer) node(t *Tree, k Key, level uint8, fn func(n node, slot int)) {
	c.t.Helper()
	e := c.f.Edit(nil)
	way, err := e.descend(t, k)
	if err != nil {
		c.t.Fatal(err)
	}
	at := way[len(way)-1-int(level)]
	n := slices.Clone(e.node(at.logical))
	fn(n, at.slot)
	c.f.super.sum().set(n)
	c.put(at.logical, n)
}

func (c *changer) put(logical uint64, n node) {
	places, _, err := c.f.locate(logical)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, at := range places {
		c.dev.blocks[at] = n
	}
}

// readAll reads all trees.
func readAll(dev lun.Device) error {
	f, err := Open(dev)
	if err != nil {
		return err
	}
	list, err := f.Subvolumes()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list {
		errs = append(errs, s.Err, f.Tree(s).Walk(Key{}, func(Key, []byte) (bool, error) { return true, nil }))
	}
	_, err = f.Logged()
	return errors.Join(append(errs, err)...)
}

// TestHostile damages one thing at a time, with checksums that fit; each is named.
func TestHostile(t *testing.T) {
	if err := readAll(luntest.Image(t, "btrfs-open1")); err != nil {
		t.Fatal(err)
	}
	live := func(c *changer) *Tree {
		list, err := c.f.Subvolumes()
		if err != nil {
			t.Fatal(err)
		}
		return c.f.Tree(list[1]) // of two levels
	}
	chunkTree := func(c *changer) *Tree {
		s := c.f.super
		return &Tree{c.f, pointer{s.chunkRoot(), s.chunkGen(), s.chunkLevel(), nil}}
	}
	last := Key{^uint64(0), 255, ^uint64(0)}
	for name, x := range map[string]struct {
		damage func(c *changer)
		want   string
	}{
		"two devices":    {func(c *changer) { c.super(func(s super) { s[136] = 2 }) }, "num_devices = 2"},
		"node size":      {func(c *changer) { c.super(func(s super) { s[149] = 0x41 }) }, "nodesize"},
		"sector size":    {func(c *changer) { c.super(func(s super) { s[144] = 1 }) }, "sectorsize"},
		"feature":        {func(c *changer) { c.super(func(s super) { s[193] = 1 }) }, "incompat_flags"},
		"zoned":          {func(c *changer) { c.super(func(s super) { s[189] |= 0x10 }) }, `"zoned"`},
		"truncated":      {func(c *changer) { c.super(func(s super) { s[117] = 1 }) }, "total_bytes"},
		"chunk array":    {func(c *changer) { c.super(func(s super) { s[162] = 1 }) }, "sys_chunk_array_size"},
		"chunk key":      {func(c *changer) { c.super(func(s super) { s.chunks()[8] = 1 }) }, "is no chunk's key"},
		"array's end":    {func(c *changer) { c.super(func(s super) { s[160]-- }) }, "num_stripes = 2"},
		"level":          {func(c *changer) { c.super(func(s super) { s[198] = 9 }) }, "level"},
		"root elsewhere": {func(c *changer) { c.super(func(s super) { s[86] = 1 }) }, "lies in no chunk"},
		"root uneven":    {func(c *changer) { c.super(func(s super) { s[80]++ }) }, "is no place for a tree block"},
		"generation":     {func(c *changer) { c.super(func(s super) { s[72]++ }) }, "generation = 13: the parent says 14"},
		"csum type":      {func(c *changer) { c.super(func(s super) { s[196] = 3 }) }, "csum_type = 3"},
		"log nowhere":    {func(c *changer) { c.super(func(s super) { s[100] = 1 }) }, "log tree"},
		"profile":        {func(c *changer) { c.node(chunkTree(c), last, 0, func(n node, i int) { n.data(i - 1)[24] |= 1 << 4 }) }, `"RAID1"`},
		"stripes":        {func(c *changer) { c.node(chunkTree(c), last, 0, func(n node, i int) { n.data(i - 1)[44] = 7 }) }, "num_stripes = 7"},
		"device":         {func(c *changer) { c.node(chunkTree(c), last, 0, func(n node, i int) { n.data(i - 1)[48] = 9 }) }, "chunk devid = 9"},
		"stripe":         {func(c *changer) { c.node(chunkTree(c), last, 0, func(n node, i int) { n.data(i - 1)[63] = 1 }) }, "chunk offset"},
		"chunk overlaps": {func(c *changer) {
			c.node(chunkTree(c), last, 0, func(n node, i int) { n.data(i - 2)[2] += 0x10 })
		}, "lies on another chunk"},
		"key order":    {func(c *changer) { c.node(live(c), Key{257, 0, 0}, 0, func(n node, i int) { n.slot(i)[0] = 0 }) }, "is out of order"},
		"item outside": {func(c *changer) { c.node(live(c), Key{257, 0, 0}, 0, func(n node, i int) { n.slot(i)[19] = 1 }) }, "lies outside its leaf"},
		"item on items": {func(c *changer) {
			c.node(live(c), Key{257, 0, 0}, 0, func(n node, i int) { le.PutUint32(n.slot(i)[17:], 0) })
		}, "lies outside its leaf"},
		"too many":    {func(c *changer) { c.node(live(c), Key{257, 0, 0}, 0, func(n node, i int) { n[98] = 1 }) }, "nritems"},
		"wrong level": {func(c *changer) { c.node(live(c), Key{257, 0, 0}, 0, func(n node, i int) { n[100] = 1 }) }, "level = 1"},
		"other fs":    {func(c *changer) { c.node(live(c), Key{257, 0, 0}, 0, func(n node, i int) { n[40] ^= 1 }) }, "another file system"},
		"circle": {func(c *changer) {
			c.node(live(c), Key{257, 0, 0}, 1, func(n node, i int) {
				le.PutUint64(n.slot(0)[17:], n.bytenr())
				le.PutUint64(n.slot(0)[25:], n.generation())
			})
		}, "the parent says 0"},
		"child twice": {func(c *changer) {
			c.node(live(c), Key{257, 0, 0}, 1, func(n node, i int) { copy(n.slot(1)[17:], n.slot(0)[17:]) })
		}, "another key is the first"},
		"root item": {func(c *changer) {
			c.node(c.f.rootTree(), Key{257, RootItem, 0}, 0, func(n node, i int) { le.PutUint32(n.slot(i)[21:], 100) })
		}, "root item"},
		"root's level": {func(c *changer) {
			c.node(c.f.rootTree(), Key{257, RootItem, 0}, 0, func(n node, i int) { n.data(i)[238] = 8 })
		}, "root level"},
		"in itself": {func(c *changer) {
			c.node(c.f.rootTree(), Key{257, RootBackref, 5}, 0, func(n node, i int) { le.PutUint64(n.slot(i)[9:], 257) })
		}, "in a circle"},
		"in none": {func(c *changer) {
			c.node(c.f.rootTree(), Key{257, RootBackref, 5}, 0, func(n node, i int) { le.PutUint64(n.slot(i)[9:], 77) })
		}, "lies in none"},
		"dir in nothing": {func(c *changer) {
			c.node(c.f.rootTree(), Key{257, RootBackref, 5}, 0, func(n node, i int) { n.data(i)[4] = 7 })
		}, "a directory has no name"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChanger(t)
			x.damage(c)
			err := readAll(c.dev)
			var fe *lun.FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), x.want) {
				t.Fatalf("%v, want a FormatError with %q", err, x.want)
			}
		})
	}
}

// TestCopies: one copy of a block, or one superblock, may be damaged.
func TestCopies(t *testing.T) {
	c := newChanger(t)
	places, _, err := c.f.locate(c.f.super.root())
	if err != nil || len(places) != 2 {
		t.Fatal(places, err)
	}
	c.dev.blocks[places[0]] = make([]byte, 100)
	if err := readAll(c.dev); err != nil {
		t.Errorf("without the first copy: %v", err)
	}
	c.dev.blocks[places[1]+500] = []byte("damage")
	if err := readAll(c.dev); err == nil || !strings.Contains(err.Error(), "checksum is wrong") {
		t.Errorf("without both: %v", err)
	}
	c = newChanger(t)
	c.dev.blocks[superAt[0]+2000] = []byte("damage")
	f, err := Open(c.dev)
	if err != nil || f.Warning == nil {
		t.Fatalf("without the first superblock: %v, warning %v", err, f)
	}
	c.dev.blocks[superAt[1]+2000] = []byte("damage")
	if _, err := Open(c.dev); err == nil || !strings.Contains(err.Error(), "checksum is wrong") {
		t.Errorf("without both superblocks: %v", err)
	}
	c.dev.blocks[superAt[0]+64] = make([]byte, 8)
	if _, err := Open(c.dev); !errors.Is(err, lun.ErrNotFormat) {
		t.Errorf("without the magic: %v", err)
	}
}

// TestSums are from the specifications of the checksums.
func TestSums(t *testing.T) {
	for s, want := range map[string]uint64{"": 0xef46db3751d8e999, "a": 0xd24ec4f1a98c6e5b, "abc": 0x44bc2cf5ad770999,
		"The quick brown fox jumps over the lazy dog": 0x0b242d361fda71bc} {
		if got := xxh64([]byte(s)); got != want {
			t.Errorf("xxh64 of %q is %#x, want %#x", s, got, want)
		}
	}
	if got := nameHash("default"); got != 2378154706 {
		t.Errorf("the hash of default is %d", got)
	}
}

// TestRefusals: what Revert does not do.
func TestRefusals(t *testing.T) {
	c := newChanger(t)
	list, err := c.f.Subvolumes()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.f.Edit(list).Revert(list[1]); !errors.Is(err, ErrNoRevert) {
		t.Errorf("what is no snapshot: %v", err)
	}
	if err := c.f.Edit(list[2:]).Revert(list[2]); !errors.Is(err, ErrNoRevert) {
		t.Errorf("whose origin is gone: %v", err)
	}
	nested := *list[2]
	nested.Parent = list[1].ID
	if err := c.f.Edit([]*Subvolume{list[0], list[1], &nested}).Revert(&nested); !errors.Is(err, ErrNoRevert) {
		t.Errorf("within its origin: %v", err)
	}
	top := *list[0]
	top.kept = 1 << 40
	if err := c.f.Edit([]*Subvolume{&top, list[1], list[2]}).Revert(list[2]); !errors.Is(err, ErrNoRevert) || !strings.Contains(err.Error(), "shares blocks") {
		t.Errorf("names in a shared block: %v", err)
	}
}
