module stillframe

go 1.26
