package target

import "github.com/cleave-san/cleave/iscsi/patient"

// source is a connection that is read with waiting or, while now is set, without.
type source struct {
	*patient.Conn
	now bool
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if s.now {
		return s.ReadNow(p)
	}
	return s.Conn.Read(p)
}
