package pdu

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/iotest"
	"time"
)

// sources give the same bytes in all the ways in which they may arrive.
var sources = map[string]func(*testing.T, []byte, *rand.Rand) io.Reader{
	"at once":   func(_ *testing.T, b []byte, _ *rand.Rand) io.Reader { return bytes.NewReader(b) },
	"by bytes":  func(_ *testing.T, b []byte, _ *rand.Rand) io.Reader { return iotest.OneByteReader(bytes.NewReader(b)) },
	"by halves": func(_ *testing.T, b []byte, _ *rand.Rand) io.Reader { return iotest.HalfReader(bytes.NewReader(b)) },
	"TCP": func(t *testing.T, b []byte, r *rand.Rand) io.Reader {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		to, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		from, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer to.Close()
			for len(b) > 0 {
				n := min(len(b), 1+r.IntN(200_000))
				if _, err := to.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
		}()
		t.Cleanup(func() {
			from.Close()
			<-done
		})
		return from
	},
}

// TestReaderLengths reads short and long data segments after each other, in pieces
// and whole, from a stream that ends where it likes.
func TestReaderLengths(t *testing.T) {
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(12) {
				r := rand.New(rand.NewPCG(seed, 1))
				readLengths(t, r, source)
			}
		})
	}
}

func readLengths(t *testing.T, r *rand.Rand, source func(*testing.T, []byte, *rand.Rand) io.Reader) {
	lengths := []int{0, 0, 1, 3, 48, 512, 4096, longData - 1, longData, longData + 1, 70_001, 256 << 10}
	digests := r.IntN(2) == 0
	var stream []byte
	var datas [][]byte
	var ends []int
	for range 1 + r.IntN(12) {
		var h Header
		h.Set(OpDataIn, FlagFinal)
		h.SetITT(uint32(len(datas)))
		data := make([]byte, lengths[r.IntN(len(lengths))])
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		stream = append(stream, wire(h, nil, data, digests, digests)...)
		datas, ends = append(datas, data), append(ends, len(stream))
	}
	if r.IntN(3) == 0 {
		stream = stream[:r.IntN(len(stream))]
	}
	src := source(t, stream, rand.New(rand.NewPCG(r.Uint64(), 2)))
	rd := NewReader(src, []int{64, 4096, 64 << 10}[r.IntN(3)], 1<<20)
	rd.HeaderDigest, rd.DataDigest = digests, digests
	last := 0
	for i, data := range datas {
		err := readOne(r, rd, uint32(i), data)
		if ends[i] <= len(stream) {
			if err != nil {
				t.Fatalf("PDU %d of %d bytes: %v", i, len(data), err)
			}
			last = ends[i]
			continue
		}
		want := io.ErrUnexpectedEOF
		if len(stream) == last {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Fatalf("PDU %d, cut: %v, want %v", i, err, want)
		}
		return
	}
	if err := rd.Next(new(Header)); !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %v", err)
	}
}

// readOne reads a PDU in some way; what it passes over is not looked at.
func readOne(r *rand.Rand, rd *Reader, itt uint32, data []byte) error {
	var h Header
	if r.IntN(2) == 0 {
		rd.Peek(HeaderLen)
	}
	if err := rd.Next(&h); err != nil {
		return err
	}
	if h.ITT() != itt || h.DataLen() != len(data) {
		return errors.New("it is another: " + h.String())
	}
	got := make([]byte, len(data))
	for at := 0; at < len(data); {
		n := len(data) - at
		if r.IntN(2) == 0 {
			n = 1 + r.IntN(n)
		}
		if r.IntN(8) == 0 {
			return rd.Skip()
		}
		if err := rd.Read(got[at : at+n]); err != nil {
			return err
		}
		at += n
	}
	if !bytes.Equal(got, data) {
		return errors.New("its data is another")
	}
	return nil
}

// TestReaderInterrupted has a deadline end a read that waits for long data: the
// system's error stays what it is.
func TestReaderInterrupted(t *testing.T) {
	var h Header
	h.Set(OpDataIn, FlagFinal)
	stream := wire(h, nil, make([]byte, 1<<20), false, false)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := to.Write(stream[:HeaderLen+100]); err != nil {
		t.Fatal(err)
	}
	rd := NewReader(from, 4096, 1<<20)
	if err := rd.Next(&h); err != nil {
		t.Fatal(err)
	}
	if err := from.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if err := rd.Read(make([]byte, 1<<20)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read past its deadline: %v", err)
	}
}
