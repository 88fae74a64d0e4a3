package vhdx

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// maxKeys bounds the entries of a parent locator; five are defined.
const maxKeys = 64

// parseLocator reads the parent locator, section 2.6.2.6.
//
//	off size field
//	  0  16  LocatorType
//	 18   2  KeyValueCount
//	 20      entries: KeyOffset (4), ValueOffset (4), KeyLength (2), ValueLength (2)
func (m *image) parseLocator() (map[string]string, error) {
	b, le := m.locator, binary.LittleEndian
	if len(b) < 20 {
		return nil, damaged(m.locAt, "parent locator", len(b), "is shorter than its own header")
	}
	if t := guid(b[:16]).String(); t != locatorVHDX {
		return nil, damaged(m.locAt, "LocatorType", t, "only parents that are VHDX files are known")
	}
	n := int(le.Uint16(b[18:]))
	if n > maxKeys || 20+12*n > len(b) {
		return nil, damaged(m.locAt+18, "KeyValueCount", n, "does not fit into the locator's %d bytes", len(b))
	}
	keys := make(map[string]string)
	for i := range n {
		e := b[20+12*i:]
		text := func(field string, off uint32, length uint16) (string, error) {
			if int64(off)+int64(length) > int64(len(b)) {
				return "", damaged(m.locAt+int64(20+12*i), field, off, "lies beyond the end of the locator")
			}
			return utf16Text(b[off:][:length]), nil
		}
		k, err := text("KeyOffset", le.Uint32(e), le.Uint16(e[8:]))
		if err != nil {
			return nil, err
		}
		if keys[k], err = text("ValueOffset", le.Uint32(e[4:]), le.Uint16(e[10:])); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// openParent opens the parent by the first of its names that the resolver
// takes, and checks that it is the one the child was made of.
func (m *image) openParent(o vdisk.Options) (func() error, error) {
	keys, err := m.parseLocator()
	if err != nil {
		return nil, err
	}
	names := parentNames(keys)
	if len(names) == 0 {
		return nil, damaged(m.locAt, "relative_path", nil, "the parent locator names no file")
	}
	var parent *image
	d, name, err := o.FirstParent(format, names, func(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
		d, p, err := open(dev, o)
		if err != nil {
			return nil, err
		}
		parent = p
		return d, nil
	})
	if err != nil {
		return nil, err
	}
	if err := m.checkParent(name, keys, parent); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	m.parent, m.parents = d, vdisk.Chain(name, d)
	m.warnings = append(m.warnings, vdisk.Inherited(name, d)...)
	return d.Close, nil
}

func (m *image) checkParent(name string, keys map[string]string, p *image) error {
	got := "{" + p.head.dataWriteGuid().String() + "}"
	for _, key := range []string{"parent_linkage", "parent_linkage2"} {
		if strings.EqualFold(keys[key], got) {
			return nil
		}
	}
	return damaged(m.locAt, "parent_linkage", keys["parent_linkage"],
		"the file %.200q has the DataWriteGuid %s: it is another disk, or was changed after the child was made", name, got)
}

// parentNames lists what the parent may be called in the order of section
// 2.6.2.6.3: each path as it stands and then its last part, for parent and
// child that were moved together.
func parentNames(keys map[string]string) []string {
	var names []string
	seen := map[string]bool{"": true}
	for _, key := range []string{"relative_path", "volume_path", "absolute_win32_path"} {
		name := strings.TrimPrefix(keys[key], `.\`)
		for _, n := range []string{name, name[strings.LastIndexAny(name, `\/`)+1:]} {
			if !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
		}
	}
	return names
}
