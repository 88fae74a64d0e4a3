package ntfs

import (
	"fmt"
	"io"
	"sort"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// run is clusters of an attribute that follow each other on the volume.
type run struct {
	vcn, n int64 // in the attribute; clusters
	lcn    int64 // on the volume; -1: nowhere
}

// maxVCN bounds the clusters of an attribute.
const maxVCN = maxFile / 512

// stream is the content of an attribute that has clusters.
type stream struct {
	f    *FS
	a    *attr
	runs []run
}

// stream reads where an attribute lies. Its memory is that of the runs in the
// records of the file: a byte at least for each 24 here.
func (f *FS) stream(a *attr) (*stream, error) {
	s := &stream{f: f, a: a}
	for _, p := range a.parts {
		if err := s.add(p); err != nil {
			return nil, err
		}
	}
	if need := (a.size + f.b.cluster - 1) / f.b.cluster; s.clusters() < need {
		return nil, a.where.damaged(a.off+48, "FileSize", a.size, fmt.Sprintf("needs %d clusters and has %d", need, s.clusters()))
	}
	return s, nil
}

func (s *stream) clusters() int64 {
	if k := len(s.runs); k > 0 {
		return s.runs[k-1].vcn + s.runs[k-1].n
	}
	return 0
}

// add adds the runs of a further extent.
func (s *stream) add(p part) error {
	where := s.a.where
	if p.pairs == nil {
		r, err := s.f.extension(p.record, where.base())
		if err != nil {
			return err
		}
		a, err := r.pick(s.a.kind, p.instance)
		if err != nil {
			return err
		}
		if a.resident() || a.name != s.a.name || a.parts[0].lowest != p.lowest {
			return r.damaged(a.off, "LowestVcn", p.lowest, "an extent of an attribute is not where a list says")
		}
		where, p = r, a.parts[0]
	}
	if p.lowest != uint64(s.clusters()) {
		return where.damaged(0, "LowestVcn", p.lowest, fmt.Sprintf("an extent of an attribute does not follow cluster %d", s.clusters()))
	}
	if err := s.decode(where, p.pairs); err != nil {
		return err
	}
	if uint64(s.clusters()) != p.highest+1 {
		return where.damaged(0, "HighestVcn", p.highest, fmt.Sprintf("the extent has %d clusters", s.clusters()))
	}
	return nil
}

// decode reads mapping pairs: for each run a byte with the lengths of two numbers,
// how many clusters, and how far from the run before.
func (s *stream) decode(where *record, b []byte) error {
	vcn, lcn := s.clusters(), int64(0)
	bad := func(v any, why string) error { return where.damaged(0, "MappingPairs", v, why) }
	for len(b) > 0 && b[0] != 0 {
		nl, ol := int(b[0]&15), int(b[0]>>4)
		if nl == 0 || nl > 8 || ol > 8 || 1+nl+ol > len(b) {
			return bad(b[0], "is no pair")
		}
		n, delta := signed(b[1:1+nl]), signed(b[1+nl:1+nl+ol])
		b = b[1+nl+ol:]
		if n <= 0 || n > maxVCN-vcn {
			return bad(n, "is no number of clusters")
		}
		r := run{vcn, n, -1}
		if ol > 0 {
			if delta < -s.f.b.clusters || delta > s.f.b.clusters {
				return bad(delta, "leads outside of the volume")
			}
			if lcn += delta; lcn < 0 || lcn > s.f.b.clusters || n > s.f.b.clusters-lcn {
				return bad(lcn, fmt.Sprintf("there are %d clusters", s.f.b.clusters))
			}
			r.lcn = lcn
		}
		s.runs = append(s.runs, r)
		vcn += n
	}
	return nil
}

// signed is a number of up to eight bytes.
func signed(b []byte) int64 {
	n := int64(0)
	for i, c := range b {
		n |= int64(c) << (8 * i)
	}
	if k := len(b); k > 0 && k < 8 && b[k-1]&0x80 != 0 {
		n -= 1 << (8 * k)
	}
	return n
}

// run is the one that a cluster is in, which is in one.
func (s *stream) run(vcn int64) run {
	return s.runs[sort.Search(len(s.runs), func(i int) bool { return s.runs[i].vcn+s.runs[i].n > vcn })]
}

// find tells of up to n bytes from off on, which is within the size, what they
// are, and where.
func (s *stream) find(off, n int64) (at, same int64, kind fs.Kind, err error) {
	size := s.f.b.cluster
	vcn := off / size
	if vcn >= s.clusters() {
		return 0, 0, 0, s.a.where.damaged(s.a.off, "MappingPairs", vcn, "there is no such cluster of the attribute")
	}
	r := s.run(vcn)
	if left := r.vcn + r.n - vcn; left <= n/size+1 {
		n = min(n, left*size-off%size)
	}
	if r.lcn < 0 {
		return 0, n, fs.Hole, nil
	}
	at, kind = (r.lcn+vcn-r.vcn)*size+off%size, fs.Data
	if off >= s.a.init {
		kind = fs.Unwritten
	} else {
		n = min(n, s.a.init-off)
	}
	return at, n, kind, nil
}

// readAt is ReadAt from a reader of the device: a read for each run.
func (s *stream) readAt(from io.ReaderAt, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, lun.ErrOutOfRange
	}
	done, want := 0, int(min(int64(len(p)), max(0, s.a.size-off)))
	for done < want {
		at, n, kind, err := s.find(off+int64(done), int64(want-done))
		if err != nil {
			return done, err
		}
		b := p[done : done+int(n)]
		if kind != fs.Data {
			clear(b)
		} else if k, err := from.ReadAt(b, at); err != nil {
			return done + k, fmt.Errorf("ntfs record %d: %w", s.a.where.number, err)
		}
		done += int(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}
