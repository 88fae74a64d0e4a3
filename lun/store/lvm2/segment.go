package lvm2

import (
	"fmt"
	"math"
	"strings"
)

// Segment is a run of extents of an LV.
type Segment struct {
	Start, Count int64 // extents
	Type         string
	StripeSize   int64 // bytes; 0 where there is one stripe
	Stripes      []Stripe

	refs []string // LVs that this segment reads
	// refused is what is wrong with a segment that others of the group do not
	// depend on: it is told when the volume is opened.
	refused error

	snapshot snapshotSegment
	legs     []leg  // of mirror and raid1
	log      string // of a mirror
	thin     thinSegment
	pool     poolSegment
}

// Stripe is where one stripe of a segment begins: on a PV or, for stacked
// volumes, on another LV.
type Stripe struct {
	Name   string
	Extent int64
}

// snapshotSegment is the record of a thick snapshot.
type snapshotSegment struct {
	chunk         int64
	origin, store string
	merging       bool
}

// leg is one copy of a mirror's content: meta is the volume with the raid
// superblock, "" for a mirror of the old kind.
type leg struct {
	image Stripe
	meta  string
}

type thinSegment struct {
	pool     string
	device   uint64
	origin   string // of which it is a snapshot
	external string // where it reads what is not mapped
	merge    string // into which volume it is about to be merged
}

type poolSegment struct {
	metadata, data string
	transaction    uint64
	chunk          int64
	messages       bool // LVM has not told the kernel all of the last change
}

func parseSegment(f fields) (*Segment, error) {
	s := &Segment{}
	var err error
	if s.Start, err = f.num("start_extent", 0, maxExtents); err != nil {
		return nil, err
	}
	if s.Count, err = f.num("extent_count", 1, maxExtents); err != nil {
		return nil, err
	}
	typ, err := f.str("type")
	if err != nil {
		return nil, err
	}
	base, flags, _ := strings.Cut(typ, "+")
	if flags != "" {
		// A flag changes what the segment means; the whole type is kept so that
		// it is refused by name when somebody opens the volume.
		base = typ
	}
	if base == "linear" {
		base = "striped"
	}
	s.Type = base
	switch base {
	case "striped":
		return s, s.parseStriped(f)
	case "snapshot":
		return s, s.parseSnapshot(f)
	case "mirror":
		s.refused = s.parseMirror(f)
	case "raid1":
		s.refused = s.parseRaid1(f)
	case "thin":
		s.refused = s.parseThin(f)
	case "thin-pool":
		s.refused = s.parsePool(f)
	}
	return s, nil
}

func (s *Segment) parseStriped(f fields) error {
	n, err := f.num("stripe_count", 1, 1024)
	if err != nil {
		return err
	}
	if s.Count%n != 0 {
		return f.fail("extent_count", s.Count, fmt.Sprintf("can't be divided among %d stripes", n))
	}
	if s.Stripes, err = f.stripes("stripes", n); err != nil || n == 1 {
		return err
	}
	size, err := f.num("stripe_size", 1, math.MaxUint32)
	s.StripeSize = size * sectorSize
	return err
}

// stripes reads a list of n pairs of a name and an extent.
func (f fields) stripes(key string, n int64) ([]Stripe, error) {
	list, _ := f.m[key].Value.([]Value)
	if int64(len(list)) != 2*n {
		return nil, f.fail(key, len(list), fmt.Sprintf("%d of them need %d entries", n, 2*n))
	}
	var out []Stripe
	for i := 0; i < len(list); i += 2 {
		name, ok1 := list[i].(string)
		ext, ok2 := list[i+1].(int64)
		if !ok1 || !ok2 || ext < 0 || ext > maxExtents {
			return nil, f.fail(key, fmt.Sprint(list[i], " ", list[i+1]), "must be a name and an extent")
		}
		out = append(out, Stripe{name, ext})
	}
	return out, nil
}

func (s *Segment) parseSnapshot(f fields) error {
	c, err := f.num("chunk_size", 1, math.MaxUint32)
	if err != nil {
		return err
	}
	r := &s.snapshot
	r.chunk = c * sectorSize
	if r.origin, err = f.str("origin"); err != nil {
		return err
	}
	if r.store, err = f.str("cow_store"); err != nil {
		if r.store, err = f.str("merging_store"); err != nil {
			return f.fail("cow_store", nil, "is missing")
		}
		r.merging = true
	}
	s.refs = append(s.refs, r.origin, r.store)
	return nil
}

func (s *Segment) parseMirror(f fields) error {
	n, err := f.num("mirror_count", 1, maxLegs)
	if err != nil {
		return err
	}
	images, err := f.stripes("mirrors", n)
	if err != nil {
		return err
	}
	for _, i := range images {
		s.legs = append(s.legs, leg{image: i})
	}
	if s.log, _ = f.m["mirror_log"].Value.(string); s.log != "" {
		s.refs = append(s.refs, s.log)
	}
	return nil
}

func (s *Segment) parseRaid1(f fields) error {
	n, err := f.num("device_count", 1, maxLegs)
	if err != nil {
		return err
	}
	names := f.strs("raids")
	if int64(len(names)) != 2*n {
		return f.fail("raids", len(names), fmt.Sprintf("%d legs need %d volumes", n, 2*n))
	}
	for i := 0; i < len(names); i += 2 {
		s.legs = append(s.legs, leg{image: Stripe{Name: names[i+1]}, meta: names[i]})
		s.refs = append(s.refs, names[i])
	}
	return nil
}

func (s *Segment) parseThin(f fields) error {
	t := &s.thin
	var err error
	if t.pool, err = f.str("thin_pool"); err != nil {
		return err
	}
	s.refs = append(s.refs, t.pool)
	id, err := f.num("device_id", 0, 1<<24-1)
	if err != nil {
		return err
	}
	t.device = uint64(id)
	t.origin, _ = f.m["origin"].Value.(string)
	t.merge, _ = f.m["merge"].Value.(string)
	if t.external, _ = f.m["external_origin"].Value.(string); t.external != "" {
		s.refs = append(s.refs, t.external)
	}
	return nil
}

func (s *Segment) parsePool(f fields) error {
	p := &s.pool
	var err error
	if p.metadata, err = f.str("metadata"); err != nil {
		return err
	}
	if p.data, err = f.str("pool"); err != nil {
		return err
	}
	s.refs = append(s.refs, p.metadata, p.data)
	n, err := f.num("transaction_id", 0, math.MaxInt64)
	if err != nil {
		return err
	}
	p.transaction = uint64(n)
	chunk, err := f.num("chunk_size", 1, math.MaxUint32)
	if err != nil {
		return err
	}
	p.chunk = chunk * sectorSize
	for key, it := range f.m {
		p.messages = p.messages || it.Sub != nil && strings.HasPrefix(key, "message")
	}
	return nil
}
