package recovery

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/partition"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// Kinds of an Identifier.
const (
	DiskID      = "disk"      // a GPT's disk GUID, or the signature of an MBR
	PartitionID = "partition" // a GPT's unique partition GUID
	PVID        = "pv"        // the UUID of a physical volume
	VGID        = "vg"        // the UUID of a volume group
	VGName      = "vg-name"
)

// Identifier is one by which hosts know a disk or what is on it, and which is
// another one in a view. Nothing within the volumes is among them: file systems,
// swap, LUKS and md keep their UUIDs, some of which their checksums are made of.
// Logical volumes keep their names and UUIDs, which hosts know together with
// their group's.
type Identifier struct {
	Kind string `json:"kind"`
	Of   string `json:"of"` // the volume it is of, as open.Contents names it; a group's name in the source
	Old  string `json:"old"`
	New  string `json:"new"`
}

// seed is what new identifiers are made of, together with the old ones.
type seed string

// sum is unforeseeable to who knows the old one and not the seed.
func (s seed) sum(old string) []byte {
	h := hmac.New(sha256.New, []byte(s))
	h.Write([]byte(old)) // never fails
	return h.Sum(nil)
}

// renew makes an identifier of the old one's form: an MBR's signature, a GUID or
// an LVM UUID. It always gives the same one.
func (s seed) renew(old string) string {
	sum := s.sum(old)
	switch len(old) {
	case 8:
		id := hex.EncodeToString(sum[:4])
		if id == old || id == "00000000" { // which is no signature
			return s.renew(fmt.Sprintf("%08x", binary.BigEndian.Uint32(sum[4:])))
		}
		return id
	case 36:
		sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // version 8, RFC 9562 section 5.8
		h := hex.EncodeToString(sum[:16])
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	}
	const letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for i, b := range sum {
		sum[i] = letters[int(b)%len(letters)]
	}
	u := string(sum)
	return u[:6] + "-" + u[6:10] + "-" + u[10:14] + "-" + u[14:18] + "-" + u[18:22] + "-" + u[22:26] + "-" + u[26:]
}

// suffix is what a group's name gets: a number, as vgimportclone gives, but one
// that the copies of one group do not share.
func (s seed) suffix(g *lvm2.Group) string {
	return fmt.Sprintf("_%08d", binary.BigEndian.Uint32(s.sum("name of "+g.UUID))%1e8)
}

// renew changes all identifiers: of the tables and labels by patches, of the
// groups in their edits. What is damaged is not renewed, since it could not be
// told from the original's then: all of it refuses, but for the half of a GPT
// for which the other one stands in. That stays as it is, and is a warning.
func (v *View) renew(c *open.Contents, s seed, edits map[*lvm2.Group]*lvm2.Edit) error {
	if len(c.Damage) > 0 {
		return fmt.Errorf("none is given where there is damage: %w", c.Damage[0])
	}
	claimed := make(map[*lvm2.PV]bool)
	for _, g := range c.Groups {
		for _, gp := range g.PVs {
			if gp.PV == nil {
				return g.MissingError(g.Name, gp)
			}
			claimed[gp.PV] = true
		}
	}
	for i, d := range c.Disks {
		if err := v.renewTable(c, i, s); err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
		for _, pv := range d.PVs {
			if !claimed[pv] {
				if err := pv.Alone(); err != nil {
					return fmt.Errorf("%s: %w", d.Name, err)
				}
			}
			p, err := pv.Renew(s.renew)
			if err != nil {
				return fmt.Errorf("%s: %w", d.Name, err)
			}
			v.bases[i].patch(p.Off, p.Data)
			v.identify(PVID, where(c, i, pv), pv.UUID, s.renew(pv.UUID))
		}
	}
	for _, g := range c.Groups {
		if edits[g] == nil {
			edits[g] = g.Edit()
		}
		name, err := edits[g].Renew(s.suffix(g), s.renew)
		if err != nil {
			return err
		}
		v.identify(VGName, g.Name, g.Name, name)
		v.identify(VGID, g.Name, g.UUID, s.renew(g.UUID))
		v.Warnings = append(v.Warnings, g.Damage...)
	}
	return nil
}

// renewTable changes the identifiers of disk i and its partitions.
func (v *View) renewTable(c *open.Contents, i int, s seed) error {
	d := c.Disks[i]
	if d.Table == nil {
		return nil
	}
	patches, err := d.Table.Renew(d.Device, s.renew)
	if err != nil {
		return err
	}
	for _, p := range patches {
		v.bases[i].patch(p.Off, p.Data)
	}
	v.identify(DiskID, c.DiskName(i), d.Table.UUID, s.renew(d.Table.UUID))
	for _, p := range d.Table.Partitions {
		v.identify(PartitionID, c.PartitionName(i, p.Number), p.UUID, s.renew(p.UUID))
	}
	for _, err := range d.Table.Damage {
		v.Warnings = append(v.Warnings, fmt.Errorf("%s: what is damaged got no new identity: %w", d.Name, err))
	}
	return nil
}

// identify lists a change, if there was an identifier.
func (v *View) identify(kind, of, old, new string) {
	if partition.NoID(old) {
		return
	}
	v.Identity = append(v.Identity, Identifier{kind, of, old, new})
}

// where names what a PV lies on.
func where(c *open.Contents, i int, pv *lvm2.PV) string {
	if t := c.Disks[i].Table; t != nil {
		for _, p := range t.Partitions {
			if p.Off == pv.Off {
				return c.PartitionName(i, p.Number)
			}
		}
	}
	return c.DiskName(i)
}
