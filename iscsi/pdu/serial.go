package pdu

// Less reports whether serial number a comes before b in 32-bit serial number
// arithmetic (RFC 1982, which RFC 7143 section 4.2.2.1 prescribes for all of
// its counters).
func Less(a, b uint32) bool { return int32(a-b) < 0 }
