package pdu

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Digests of RFC 7143 appendix A / RFC 3720 section B.4.
func TestDigestVectors(t *testing.T) {
	up := make([]byte, 32)
	for i := range up {
		up[i] = byte(i)
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{make([]byte, 32), "aa36918a"},
		{bytes.Repeat([]byte{0xff}, 32), "43aba862"},
		{up, "4e79dd46"},
	} {
		var b [4]byte
		PutDigest(b[:], Digest(0, c.data))
		if got := hex.EncodeToString(b[:]); got != c.want {
			t.Errorf("digest of %x: %s, want %s", c.data, got, c.want)
		}
	}
}

// wire builds a PDU as it stands on the wire.
func wire(h Header, ahs, data []byte, hd, dd bool) []byte {
	h[4] = byte(len(ahs) / 4)
	h.SetDataLen(len(data))
	out := append(append([]byte(nil), h[:]...), ahs...)
	if hd {
		out = append(out, 0, 0, 0, 0)
		PutDigest(out[len(out)-4:], Digest(0, out[:len(out)-4]))
	}
	if len(data) > 0 {
		padded := append(bytes.Clone(data), make([]byte, -len(data)&3)...)
		out = append(out, padded...)
		if dd {
			out = append(out, 0, 0, 0, 0)
			PutDigest(out[len(out)-4:], Digest(0, padded))
		}
	}
	return out
}

func TestReader(t *testing.T) {
	for _, digests := range []bool{false, true} {
		var a, b Header
		a.Set(OpSCSICommand, FlagFinal|FlagWrite)
		a.SetITT(7)
		b.Set(OpNopOut, FlagFinal)
		ahs := []byte{0, 5, 2, 0, 0, 0, 0, 9}
		stream := wire(a, ahs, []byte("hello"), digests, digests)
		stream = append(stream, wire(b, nil, nil, digests, digests)...)
		r := NewReader(bytes.NewReader(stream), 4096, 100)
		r.HeaderDigest, r.DataDigest = digests, digests
		var h Header
		if err := r.Next(&h); err != nil || h.ITT() != 7 || h.DataLen() != 5 {
			t.Fatalf("first: %v %s", err, &h)
		}
		if !bytes.Equal(r.AHS(), ahs) {
			t.Fatalf("AHS %x", r.AHS())
		}
		p := make([]byte, 3)
		if err := r.Read(p); err != nil || string(p) != "hel" {
			t.Fatalf("%q %v", p, err)
		}
		// The rest is passed over.
		if err := r.Next(&h); err != nil || h.Opcode() != OpNopOut {
			t.Fatalf("second: %v %s", err, &h)
		}
		if err := r.Next(&h); !errors.Is(err, io.EOF) {
			t.Fatalf("end: %v", err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	var h Header
	h.Set(OpText, FlagFinal)
	good := wire(h, nil, []byte("abcd"), true, true)
	flip := func(i int) []byte { b := bytes.Clone(good); b[i] ^= 1; return b }
	for _, c := range []struct {
		name string
		in   []byte
		max  int
		want error
	}{
		{"header digest", flip(20), 100, ErrHeaderDigest},
		{"data digest", flip(53), 100, ErrDataDigest},
		{"too long", good, 3, ErrTooLong},
		{"cut in the header", good[:20], 100, io.ErrUnexpectedEOF},
		{"cut in the digest", good[:50], 100, io.ErrUnexpectedEOF},
		{"cut in the data", good[:54], 100, io.ErrUnexpectedEOF},
	} {
		r := NewReader(bytes.NewReader(c.in), 64, c.max)
		r.HeaderDigest, r.DataDigest = true, true
		var g Header
		err := r.Next(&g)
		if err == nil {
			err = r.Read(make([]byte, g.DataLen()))
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestCheckAHS(t *testing.T) {
	for _, c := range []struct {
		in        string
		ext, bidi bool
		ok        bool
	}{
		{"", false, false, true},
		{"0005020000000009", false, true, true},
		{"0005010000000009", true, false, true},
		{"ffff010000000009", false, false, false}, // longer than there is
		{"0000010000000009", false, false, false}, // no end
		{"000102000005020000000009", false, true, true},
	} {
		b, _ := hex.DecodeString(c.in)
		ext, bidi, err := CheckAHS(b)
		if (err == nil) != c.ok || c.ok && (ext != c.ext || bidi != c.bidi) {
			t.Errorf("%s: %t %t %v", c.in, ext, bidi, err)
		}
	}
}

func TestText(t *testing.T) {
	keys := []Key{{"InitiatorName", "iqn.a"}, {"X-com.example", "a=b"}, {"Empty", ""}}
	got, err := ParseText(AppendText(nil, keys...))
	if err != nil || !cmp.Equal(got, keys) {
		t.Fatalf("%v %v", got, err)
	}
	for _, bad := range []string{"novalue\x00", "=x\x00", "1st=x\x00", "A b=c\x00", strings.Repeat("A", 64) + "=x\x00",
		"A=" + strings.Repeat("x", MaxKeyValue+1), strings.Repeat("A=b\x00", MaxKeys+1)} {
		if _, err := ParseText([]byte(bad)); !errors.Is(err, ErrText) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func TestNumber(t *testing.T) {
	for s, want := range map[string]uint64{"0": 0, "512": 512, "0x10": 16, "0XfF": 255} {
		if n, err := ParseNumber(s); err != nil || n != want {
			t.Errorf("%s: %d %v", s, n, err)
		}
	}
	for _, s := range []string{"", "-1", "+1", "0x", "1_0", "99999999999999999999", " 1", "0b1"} {
		if n, err := ParseNumber(s); err == nil {
			t.Errorf("%q: %d", s, n)
		}
	}
}

func TestSerial(t *testing.T) {
	if !Less(1, 2) || Less(2, 1) || Less(5, 5) || !Less(0xffffffff, 0) || Less(0, 0xffffffff) {
		t.Error("serial number order")
	}
}

func FuzzReader(f *testing.F) {
	var h Header
	h.Set(OpSCSICommand, FlagFinal)
	f.Add(wire(h, []byte{0, 5, 2, 0, 0, 0, 0, 9}, []byte("data"), true, true), true, true)
	f.Add(wire(h, nil, nil, false, false), false, false)
	f.Fuzz(func(t *testing.T, in []byte, hd, dd bool) {
		r := NewReader(bytes.NewReader(in), 64, 1<<16)
		r.HeaderDigest, r.DataDigest = hd, dd
		var h Header
		for r.Next(&h) == nil {
			_, _, _ = CheckAHS(r.AHS())
			_ = h.String()
			if h.DataLen() > 1<<16 {
				t.Fatal("longer than allowed")
			}
			if r.Read(make([]byte, h.DataLen()/2)) != nil {
				return
			}
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.a\x00X-a=\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		keys, err := ParseText(in)
		if err != nil {
			return
		}
		again, err := ParseText(AppendText(nil, keys...))
		if err != nil || !cmp.Equal(keys, again) {
			t.Fatalf("%q: %v, then %v (%v)", in, keys, again, err)
		}
		for _, k := range keys {
			_, _ = ParseNumber(k.Value)
		}
	})
}
