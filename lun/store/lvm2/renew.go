package lvm2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

// maxDMName is the length of the longest name of a device-mapper device, with
// its final zero (DM_NAME_LEN of linux/dm-ioctl.h).
const maxDMName = 128

// dmSuffix is the longest that LVM puts behind a volume's name for a layer
// under it: "-real", "-cow", "-tpool".
const dmSuffix = "-tpool"

// Renew gives the group another name and UUID, and its PVs other UUIDs, as
// vgimportclone(8) does, so that a host that has the original takes it for
// another group. Volumes keep their names and UUIDs. suffix is put behind the
// name, which is cut where the names of the volumes' devices would be too long;
// renew gives the new UUID for an old one, and must not give one to two. It
// returns the new name. The labels of the PVs have to be changed as well, by
// PV.Renew with the same renew.
func (e *Edit) Renew(suffix string, renew func(old string) string) (name string, err error) {
	g := e.group
	if name, err = g.nameFor(suffix); err != nil {
		return "", err
	}
	uuid, err := newUUID(renew, g.UUID)
	if err != nil {
		return "", err
	}
	e.vg.set("id", uuid)
	for _, pv := range g.PVs {
		if uuid, err = newUUID(renew, pv.UUID); err != nil {
			return "", err
		}
		e.vg.sub("physical_volumes").sub(pv.Name).set("id", uuid)
	}
	for i := range e.text.Items {
		if e.text.Items[i].Sub == e.vg {
			e.text.Items[i].Key = name
		}
	}
	e.vg.Name = name
	return name, nil
}

// nameFor puts suffix behind the group's name, of which it takes as much as
// leaves room for the longest volume's name. In device-mapper names a hyphen is
// two.
func (g *Group) nameFor(suffix string) (string, error) {
	longest := 0
	for _, lv := range g.LVs {
		longest = max(longest, len(lv.Name)+strings.Count(lv.Name, "-"))
	}
	room := maxDMName - 1 - len("-") - longest - len(dmSuffix) - len(suffix) - strings.Count(suffix, "-")
	base := g.Name
	for len(base) > 0 && len(base)+strings.Count(base, "-") > room {
		base = base[:len(base)-1]
	}
	if base == "" {
		return "", &lun.FormatError{Format: format, Offset: -1, Field: "volume group", Value: g.Name,
			Reason: "can have no longer name: those of its volumes leave no room in names of devices"}
	}
	return base + suffix, nil
}

// newUUID is renew's answer in LVM's printed form.
func newUUID(renew func(string) string, old string) (string, error) {
	id := renew(old)
	bare := strings.ReplaceAll(id, "-", "")
	if len(bare) != uuidLen || strings.IndexFunc(bare, notID) >= 0 {
		return "", fmt.Errorf("new UUID %.60q: want 32 letters and digits", id)
	}
	return dashed(bare), nil
}

// Renew returns the patch that gives the PV another UUID in its label, which
// renew gives for the old one. One that belongs to a group is to be changed in
// the group's text as well; see Edit.Renew.
func (p *PV) Renew(renew func(old string) string) (Patch, error) {
	uuid, err := newUUID(renew, p.UUID)
	if err != nil {
		return Patch{}, err
	}
	l, le := bytes.Clone(p.sector), binary.LittleEndian
	h := le.Uint32(l[20:])
	copy(l[h:h+uuidLen], strings.ReplaceAll(uuid, "-", ""))
	le.PutUint32(l[16:], checksum(l[20:]))
	return Patch{p, p.labelAt, l}, nil
}

// Alone reports whether the PV belongs to no group by its own word: it is not
// marked as in use, and no metadata is on it. The error says why not, where no
// group that could be read has it.
func (p *PV) Alone() error {
	why := ""
	switch {
	case len(p.Damage) > 0:
		return p.Damage[0]
	case p.InUse:
		why = "is in use by a volume group that could not be read from the devices given"
	}
	for _, m := range p.MDAs {
		if m.Text != nil {
			why = "holds metadata of a volume group that does not have it"
		}
	}
	if why == "" {
		return nil
	}
	return &lun.FormatError{Format: format, Offset: p.labelAt, Field: "PV UUID", Value: p.UUID, Reason: why}
}
