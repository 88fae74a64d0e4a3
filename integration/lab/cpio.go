package lab

import (
	"fmt"
	"io"
)

// cpioWriter writes a "newc" archive, the kernel's initramfs format (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). Several archives
// may follow each other in one initramfs, each padded to four bytes.
type cpioWriter struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioChar = 0o020000
)

// add writes one entry; major and minor are the device numbers of a node.
func (c *cpioWriter) add(name string, mode int, major, minor int, body []byte) {
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad()
	c.write(body)
	c.pad()
}

func (c *cpioWriter) dir(name string)               { c.add(name, cpioDir|0o755, 0, 0, nil) }
func (c *cpioWriter) file(name string, body []byte) { c.add(name, cpioFile|0o755, 0, 0, body) }

// close ends the archive and returns the first error met.
func (c *cpioWriter) close() error {
	if name := "TRAILER!!!"; c.err == nil {
		c.add(name, 0, 0, 0, nil)
	}
	return c.err
}

func (c *cpioWriter) pad() { c.write(make([]byte, -c.n&3)) }

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.err = err
}
