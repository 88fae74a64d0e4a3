package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// hello is what a client says to open the default export.
func hello() []byte {
	b := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	option := func(o optionType, data []byte) {
		b = binary.BigEndian.AppendUint64(b, magicOption)
		b = binary.BigEndian.AppendUint32(b, uint32(o))
		b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
	}
	option(optList, nil)
	option(optStructuredReply, nil)
	option(optSetMeta, append([]byte{0, 0, 0, 0, 0, 0, 0, 1}, appendString(nil, contextAllocation)...))
	option(optGo, []byte{0, 0, 0, 0, 0, 1, 0, 3})
	return b
}

func ask(rs ...request) []byte {
	var b []byte
	for _, r := range rs {
		var h [requestSize]byte
		r.encode(&h)
		b = append(b, h[:]...)
		if r.cmd == cmdWrite {
			b = append(b, make([]byte, r.length)...)
		}
	}
	return b
}

// FuzzServer says anything to a server: it must neither crash nor hang, and the
// device must not be reached beyond its size.
func FuzzServer(f *testing.F) {
	f.Add([]byte{})
	f.Add(hello())
	f.Add(append(hello(), ask(
		request{cmd: cmdRead, length: 4096}, request{cmd: cmdWrite, length: 512, flags: cmdFlagFUA},
		request{cmd: cmdBlockStatus, length: 65536}, request{cmd: cmdWriteZeroes, length: 8192},
		request{cmd: cmdTrim, off: 512, length: 512}, request{cmd: cmdFlush}, request{cmd: cmdDisc})...))
	f.Add(append(hello()[:4], append(optionBytes(optStartTLS), hello()[4:]...)...))
	f.Add(append(hello(), ask(request{cmd: cmdCache, length: 65536}, request{cmd: cmdRead, flags: cmdFlagDF, length: 512})...))
	secure := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return nil, errors.New("there is none")
	}}
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := NewServer(ServerOptions{HandshakeTimeout: time.Minute, TLS: secure, TLSOptional: true}, Export{Device: strict{t, newMemory(64 << 10)}})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.ServeConn(context.Background(), theirs)
		}()
		go func() {
			_, _ = ours.Write(in)
			// Requests must be answered even if the client then only listens;
			// a real end of stream can't be made on a pipe without losing that.
			ours.SetReadDeadline(time.Now().Add(time.Millisecond))
		}()
		_, _ = io.Copy(io.Discard, ours)
		ours.Close()
		<-done
	})
}

// strict fails the test when a server lets a bad range through.
type strict struct {
	t *testing.T
	*memory
}

func (s strict) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.memory.ReadAt(p, off)
	if err != nil {
		s.t.Errorf("read of %d at %d reached the device", len(p), off)
	}
	return n, err
}

func (s strict) WriteAt(p []byte, off int64) (int, error) {
	n, err := s.memory.WriteAt(p, off)
	if err != nil {
		s.t.Errorf("write of %d at %d reached the device", len(p), off)
	}
	return n, err
}

// FuzzClient lets a server say anything: the client must neither crash nor
// hang, and must not report a read as done that was not answered in full.
func FuzzClient(f *testing.F) {
	greeting := append(append(be64(magicNBD), be64(magicOption)...), 0, flagFixedNewstyle|flagNoZeroes)
	reply := func(o optionType, t replyType, data []byte) []byte {
		b := append(be64(magicOptReply), be64(uint64(o)<<32|uint64(t))...)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	export := append([]byte{0, infoExport}, append(be64(1<<20), 0, flagHasFlags|flagFlush|flagWriteZeroes)...)
	agreed := bytes.Join([][]byte{greeting,
		reply(optStructuredReply, repAck, nil),
		reply(optSetMeta, repMetaContext, append([]byte{0, 0, 0, 1}, contextAllocation...)), reply(optSetMeta, repAck, nil),
		reply(optGo, repInfo, export), reply(optGo, repAck, nil)}, nil)
	plainly := bytes.Join([][]byte{greeting, reply(optStructuredReply, repErrUnsup, nil),
		reply(optGo, repInfo, export), reply(optGo, repAck, nil)}, nil)
	simple := append(binary.BigEndian.AppendUint32(nil, magicReply), 0, 0, 0, 0)
	data := binary.BigEndian.AppendUint32(nil, magicStructured)
	data = append(data, 0, chunkDone, 0, chunkData)
	data = append(append(data, be64(1)...), 0, 0, 4, 8)
	data = append(data, make([]byte, 1032)...)
	status := binary.BigEndian.AppendUint32(nil, magicStructured)
	status = append(status, 0, chunkDone, 0, chunkBlockStatus)
	status = append(append(status, be64(2)...), 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3)

	f.Add([]byte{})
	f.Add(agreed)
	f.Add(append(bytes.Clone(agreed), append(data, status...)...))
	f.Add(append(bytes.Clone(plainly), append(append(simple, be64(1)...), make([]byte, 1024)...)...))
	f.Add(append(bytes.Clone(greeting[:17]), append([]byte{0}, be64(4096)...)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		go func() {
			_, _ = theirs.Write(in)
			theirs.Close()
		}()
		c, err := New(context.Background(), ours, ClientOptions{Timeout: time.Minute})
		if err != nil {
			theirs.Close()
			return
		}
		defer c.Close()
		if c.Size() < 0 {
			t.Fatalf("size %d", c.Size())
		}
		if c.Size() >= 1024 {
			buf := make([]byte, 1024)
			if n, err := c.ReadAt(buf, 0); err == nil && n != len(buf) {
				t.Fatalf("read %d without an error", n)
			}
		}
		var at int64
		_ = c.Extents(0, min(c.Size(), 1<<20), func(e lun.Extent) error {
			if e.Off != at || e.Len <= 0 || e.Off+e.Len > c.Size() {
				t.Fatalf("extent %+v after %d", e, at)
			}
			at += e.Len
			return nil
		})
		_ = c.Sync()
	})
}
