package lvm2

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

// maxLegs bounds a mirror; LVM makes up to ten legs of a raid1, eight of a
// mirror.
const maxLegs = 64

// copyOf returns the stripes that a segment's content is read from: its own, or
// the leg of a mirror that is in sync. All of a segment comes from one leg,
// since after a power cut legs may differ where a write was under way.
func (g *Group) copyOf(f fields, s *Segment, d descent) ([]Stripe, error) {
	if s.refused != nil {
		return nil, s.refused
	}
	var leg int
	var err error
	switch s.Type {
	case "striped":
		return s.Stripes, nil
	case "mirror":
		leg, err = g.mirrorLeg(f, s, d)
	case "raid1":
		leg, err = g.raidLeg(f, s, d)
	default:
		err = f.fail("type", s.Type, refusal(s.Type))
	}
	if err != nil {
		return nil, err
	}
	return []Stripe{s.legs[leg].image}, nil
}

// mirrorLeg is the first leg, which the kernel (dm-raid1.c) fills the others
// from: it is whole even while they are not. If it can't be read, another will
// do only if the log says that no region differs.
func (g *Group) mirrorLeg(f fields, s *Segment, d descent) (int, error) {
	first := g.readable(s.legs[0].image, d)
	if first == nil {
		return 0, nil
	}
	if err := g.mirrorLog(f, s, d); err != nil {
		return 0, fmt.Errorf("%w (the first leg can't be read: %w)", err, first)
	}
	for i, l := range s.legs {
		if i > 0 && g.readable(l.image, d) == nil {
			return i, nil
		}
	}
	return 0, first
}

// The log of a mirror: a header in the first sector (magic, version, number of
// regions), and from byte 1024 on a bit for each region, set where all legs are
// alike.
const (
	logMagic = 0x4D695272 // "MiRr"
	logBits  = 1024
)

// mirrorLog reports, by an error, whether legs may differ.
func (g *Group) mirrorLog(f fields, s *Segment, d descent) error {
	if s.log == "" {
		return f.fail("mirror_log", nil, "the log was in the guest's memory, so that it is not known which legs are in sync")
	}
	log, err := g.openName(s.log, d)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	b := make([]byte, sectorSize)
	if _, err := log.ReadAt(b, 0); err != nil {
		return fmt.Errorf("mirror log %s: %w", s.log, err)
	}
	if v := le.Uint32(b); v != logMagic {
		return f.fail("mirror_log/magic", fmt.Sprintf("%#08x", v), "no mirror log is there")
	}
	regions := le.Uint64(b[8:])
	if regions > uint64(log.Size()-logBits)*8 {
		return f.fail("mirror_log/nr_regions", regions, "are more than the log has room for")
	}
	for at := uint64(0); at < regions; at += 8 * sectorSize {
		if _, err := log.ReadAt(b, int64(logBits+at/8)); err != nil {
			return fmt.Errorf("mirror log %s: %w", s.log, err)
		}
		for i := at; i < min(at+8*sectorSize, regions); i++ {
			if b[i%(8*sectorSize)/8]>>(i%8)&1 == 0 {
				return f.fail("mirror_log", i, "this region may differ between the legs, and the first one is needed")
			}
		}
	}
	return nil
}

// The superblock of a raid leg, in the first sector of its metadata volume
// (drivers/md/dm-raid.c, struct dm_raid_superblock). Little-endian.
//
//	off size field
//	  0   4  magic "DmRd"
//	  4   4  compat_features, bit 0: the fields from 60 on exist
//	  8   4  num_devices
//	 12   4  array_position
//	 16   8  events
//	 24   8  failed_devices, a bit for each position
//	 32   8  disk_recovery_offset, all ones when this leg is whole
//	 40   8  array_resync_offset, all ones when the legs are alike
//	 48   4  level
//	 60   4  flags, of a reshape
//	 96   8  data_offset
//	144   4  incompat_features
const (
	raidMagic = 0x64526D44
	raidV190  = 1
	inSync    = math.MaxUint64
)

type raidSuper struct {
	fresh            bool // never activated
	events, failed   uint64
	recovery, resync uint64
}

func (g *Group) raidSuper(f fields, l leg, position int, d descent) (*raidSuper, error) {
	dev, err := g.openName(l.meta, d)
	if err != nil {
		return nil, err
	}
	b := make([]byte, sectorSize)
	if _, err := dev.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("raid superblock in %s: %w", l.meta, err)
	}
	le := binary.LittleEndian
	fail := func(field string, v any, why string) error { return f.fail(l.meta+"/"+field, v, why) }
	switch v := le.Uint32(b); {
	case v == 0:
		return &raidSuper{fresh: true}, nil
	case v != raidMagic:
		return nil, fail("magic", fmt.Sprintf("%#08x", v), "no raid superblock is there")
	}
	if v := le.Uint32(b[12:]); v != uint32(position) {
		return nil, fail("array_position", v, fmt.Sprintf("the metadata has this leg at %d", position))
	}
	if v := int32(le.Uint32(b[48:])); v != 1 {
		return nil, fail("level", v, "the metadata says raid1")
	}
	if le.Uint32(b[4:])&raidV190 != 0 {
		for _, w := range []struct {
			field string
			v     uint64
		}{{"flags", uint64(le.Uint32(b[60:]))}, {"data_offset", le.Uint64(b[96:])}, {"incompat_features", uint64(le.Uint32(b[144:]))}} {
			if w.v != 0 {
				return nil, fail(w.field, w.v, "a raid that is being reshaped can't be read: let the guest finish it")
			}
		}
	}
	return &raidSuper{events: le.Uint64(b[16:]), failed: le.Uint64(b[24:]), recovery: le.Uint64(b[32:]), resync: le.Uint64(b[40:])}, nil
}

// raidLeg is the leg that the kernel itself would read first: of those with the
// newest superblock that are whole and not known as failed, the one with the
// lowest number. A leg that can't be looked at might have a newer superblock;
// unless the others say that it failed, there is no telling, and no leg is
// taken.
func (g *Group) raidLeg(f fields, s *Segment, d descent) (int, error) {
	supers := make([]*raidSuper, len(s.legs))
	why := make([]error, len(s.legs))
	var newest, failed uint64
	fresh := true
	for i, l := range s.legs {
		if supers[i], why[i] = g.raidSuper(f, l, i, d); why[i] == nil {
			why[i] = g.readable(l.image, d)
		}
		if why[i] != nil {
			supers[i] = nil
			continue
		}
		if sb := supers[i]; !sb.fresh {
			fresh = false
			switch {
			case sb.events > newest:
				newest, failed = sb.events, sb.failed
			case sb.events == newest:
				failed |= sb.failed
			}
		}
	}
	var unknown []string
	for i, err := range why {
		if err != nil && failed>>i&1 == 0 {
			unknown = append(unknown, err.Error())
		}
	}
	if len(unknown) > 0 {
		return 0, f.fail("raids", nil, "it can't be told which leg is up to date: "+strings.Join(unknown, "; "))
	}
	for i, sb := range supers {
		switch {
		case sb == nil, failed>>i&1 == 1:
		case fresh, !sb.fresh && sb.events == newest && sb.recovery == inSync:
			return i, nil
		}
	}
	return 0, f.fail("raids", nil, "no leg is in sync")
}

// readable says whether a leg can be read.
func (g *Group) readable(st Stripe, d descent) error {
	if gp := g.pvs[st.Name]; gp != nil {
		if gp.PV == nil || gp.Marked {
			return g.MissingError("a leg", gp)
		}
		return nil
	}
	_, err := g.openName(st.Name, d)
	return err
}

func (g *Group) openName(name string, d descent) (lun.Device, error) {
	lv := g.lvs[name]
	if lv == nil {
		return nil, fields{where: g.where}.fail(name, nil, "no such logical volume")
	}
	return g.open(lv, d.down())
}
