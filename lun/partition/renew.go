package partition

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

// Patch is a run of bytes to be put on a disk at Off, over what is there.
type Patch struct {
	Off  int64
	Data []byte
}

// Renew returns the patches that replace the identifiers in the table of dev:
// the disk's and each partition's, or the one signature of an MBR, from which
// kernels make the partitions' PARTUUIDs. renew gets each in the form of
// Table.UUID and Partition.UUID, and returns the new one in the same form. It is
// called for each copy of a GPT, and must always give the same answer. Nothing
// else changes: neither types, names, and places, nor boot code.
//
// An identifier that is all zeroes is none, and stays. Of a GPT only copies that
// are whole are written, with their new checksums: a damaged one stays the
// damaged one that Table.Damage reports. A GPT whose headers or entries lie in a
// partition is refused. The protective MBR has no identifier.
//
// dev must hold what it held when it was read.
func (t *Table) Renew(dev lun.Device, renew func(old string) string) ([]Patch, error) {
	if t.Scheme == MBR {
		return t.renewMBR(renew)
	}
	var out []Patch
	for _, h := range t.copies {
		patches, err := h.renew(dev, renew)
		if err != nil {
			return nil, err
		}
		// Two headers may name one array of entries.
		for _, p := range patches {
			if !holds(out, p) {
				out = append(out, p)
			}
		}
	}
	return out, t.apart(out)
}

// NoID reports whether an identifier of a table is none: all zeroes.
func NoID(id string) bool { return strings.Trim(id, "0-") == "" }

func holds(list []Patch, p Patch) bool {
	for _, q := range list {
		if q.Off == p.Off && bytes.Equal(q.Data, p.Data) {
			return true
		}
	}
	return false
}

func (t *Table) renewMBR(renew func(string) string) ([]Patch, error) {
	if NoID(t.UUID) {
		return nil, nil
	}
	id := renew(t.UUID)
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != 4 {
		return nil, fmt.Errorf("new disk signature %.40q: want 8 hexadecimal digits", id)
	}
	data := make([]byte, 4)
	binary.LittleEndian.PutUint32(data, binary.BigEndian.Uint32(b))
	return []Patch{{mbrSignature, data}}, nil
}

// renew makes the patches of one copy: its array of entries, and its header
// with their checksum and its own.
func (h *gptHeader) renew(dev lun.Device, renew func(string) string) ([]Patch, error) {
	entries, err := h.entries(dev)
	if err != nil {
		return nil, err
	}
	for i := range int(h.count) {
		e := entries[i*int(h.size):][:h.size]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		if err := replace(e[16:32], renew); err != nil {
			return nil, err
		}
	}
	header := bytes.Clone(h.raw)
	if err := replace(header[56:72], renew); err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(entries))
	clear(header[16:20])
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	return []Patch{{h.at, header}, {int64(h.entryLBA) * int64(h.sector), entries}}, nil
}

// replace puts a new GUID into b, if there is an old one.
func replace(b []byte, renew func(string) string) error {
	old := guid(b)
	if NoID(old) {
		return nil
	}
	id := renew(old)
	p, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	if err != nil || len(p) != 16 {
		return fmt.Errorf("new GUID %.40q: want 32 hexadecimal digits", id)
	}
	// The order of the bytes is its own inverse.
	p, err = hex.DecodeString(strings.ReplaceAll(guid(p), "-", ""))
	copy(b, p)
	return err
}

// apart refuses patches that lie in a partition, where they would be written to
// a volume as well, or on one another.
func (t *Table) apart(patches []Patch) error {
	for i, p := range patches {
		end := p.Off + int64(len(p.Data))
		fail := func(what string) error {
			return &lun.FormatError{Format: string(GPT), Offset: p.Off, Field: "PartitionEntryLBA", Value: p.Off / int64(t.Sector),
				Reason: "a header or the entries lie in " + what + ": no other identifiers are written there"}
		}
		for _, q := range t.Partitions {
			if p.Off < q.Off+q.Len && end > q.Off {
				return fail(fmt.Sprintf("partition %d", q.Number))
			}
		}
		for _, q := range patches[:i] {
			if p.Off < q.Off+int64(len(q.Data)) && end > q.Off {
				return fail("another part of the table")
			}
		}
	}
	return nil
}
