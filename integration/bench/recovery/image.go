package recovery

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
)

// image is a disk that is one LVM2 physical volume with an origin and a thick
// snapshot of it, whose exceptions are one for every spacing bytes from the
// origin's start on. The file is sparse; data are there only where filled.
type image struct {
	origin     int64 // bytes, whole extents
	exceptions int
	spacing    int64
	filled     bool // origin and store have data, as far as the exceptions go
}

const (
	extent  = 4 << 20
	chunk   = 4 << 10
	start   = 1 << 20 // of the first extent
	mdaOff  = 4 << 10
	perArea = chunk / 16
)

// store is the size of the copy-on-write volume.
func (m image) store() int64 {
	areas := int64(m.exceptions)/perArea + 1
	chunks := 1 + int64(m.exceptions) + areas
	return (chunks*chunk + extent - 1) / extent * extent
}

func (m image) size() int64 { return start + m.origin + m.store() }

// checksum is LVM's: CRC-32 from another start, not inverted in the end.
func checksum(b []byte) uint32 {
	return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b)
}

// write makes the file.
func (m image) write(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(m.size()); err != nil {
		return err
	}
	if _, err := f.WriteAt(m.head(), 0); err != nil {
		return err
	}
	if m.filled {
		if err := m.fill(f); err != nil {
			return err
		}
	}
	if err := m.table(f); err != nil {
		return err
	}
	return f.Sync()
}

// head is what lies before the first extent: label, metadata area, text.
func (m image) head() []byte {
	const id = "AAAAAAbbbbccccddddeeeeffffGGGGGG"
	le := binary.LittleEndian
	b := make([]byte, start)
	label := b[512:1024]
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	copy(label[32:], id)
	le.PutUint64(label[64:], uint64(m.size()))
	le.PutUint64(label[72:], start)                   // data area
	le.PutUint64(label[104:], mdaOff)                 // metadata area, after the list's end
	le.PutUint64(label[112:], start-mdaOff)           //
	le.PutUint32(label[16:], checksum(label[20:512])) //

	text := []byte(m.text(id) + "\x00")
	copy(b[mdaOff+512:], text)
	h := b[mdaOff : mdaOff+512]
	copy(h[4:], " LVM2 x[5A%r0N*>")
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], mdaOff)
	le.PutUint64(h[32:], start-mdaOff)
	le.PutUint64(h[40:], 512)
	le.PutUint64(h[48:], uint64(len(text)))
	le.PutUint32(h[56:], checksum(text))
	le.PutUint32(h, checksum(h[4:]))
	return b
}

func (m image) text(id string) string {
	dashed := func(s string) string {
		return s[:6] + "-" + s[6:10] + "-" + s[10:14] + "-" + s[14:18] + "-" + s[18:22] + "-" + s[22:26] + "-" + s[26:]
	}
	uuid := func(n byte) string { return dashed(strings.Repeat(string('0'+rune(n)), 32)) }
	origin, store := m.origin/extent, m.store()/extent
	volume := func(name, id, status, segment string) string {
		return fmt.Sprintf("%s {\nid = %q\nstatus = [%s]\nflags = []\nsegment_count = 1\nsegment1 {\nstart_extent = 0\n%s}\n}\n", name, id, status, segment)
	}
	linear := func(count, at int64) string {
		return fmt.Sprintf("extent_count = %d\ntype = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", %d\n]\n", count, at)
	}
	return fmt.Sprintf("vgbench {\nid = %q\nseqno = 4\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = %d\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n", uuid(1), extent/512) +
		fmt.Sprintf("physical_volumes {\npv0 {\nid = %q\ndevice = \"/dev/vda\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = %d\npe_start = %d\npe_count = %d\n}\n}\nlogical_volumes {\n", dashed(id), m.size()/512, start/512, origin+store) +
		volume("data", uuid(2), `"READ", "WRITE", "VISIBLE"`, linear(origin, 0)) +
		volume("snap", uuid(3), `"READ", "WRITE"`, linear(store, origin)) +
		volume("snapshot0", uuid(4), `"READ", "WRITE", "VISIBLE"`, fmt.Sprintf("extent_count = %d\ntype = \"snapshot\"\nchunk_size = %d\norigin = \"data\"\ncow_store = \"snap\"\n", origin, chunk/512)) +
		"}\n}\ncontents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"\"\ncreation_host = \"bench\"\ncreation_time = 1\n"
}

// table writes the exception store: chunks of the origin in any order, as a
// guest writes, each in the store's next chunk.
func (m image) table(f *os.File) error {
	le := binary.LittleEndian
	at := start + m.origin
	b := make([]byte, chunk)
	le.PutUint32(b, 0x70416E53)
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], chunk/512)
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	order := rand.New(rand.NewPCG(1, 2)).Perm(m.exceptions)
	for area := 0; area*perArea <= m.exceptions; area++ {
		clear(b)
		first := 1 + area*(perArea+1)
		for i := range perArea {
			n := area*perArea + i
			if n == m.exceptions {
				break
			}
			le.PutUint64(b[16*i:], uint64(int64(order[n])*m.spacing/chunk))
			le.PutUint64(b[16*i+8:], uint64(first+1+i))
		}
		if _, err := f.WriteAt(b, at+int64(first)*chunk); err != nil {
			return err
		}
	}
	return nil
}

// fill writes data where the exceptions lie, and over the store.
func (m image) fill(f *os.File) error {
	b := make([]byte, 1<<20)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(b) //nolint:errcheck // never fails
	write := func(off, n int64) error {
		for end := off + n; off < end; off += int64(len(b)) {
			if _, err := f.WriteAt(b[:min(int64(len(b)), end-off)], off); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(write(start, int64(m.exceptions)*m.spacing), write(start+m.origin, m.store()))
}
